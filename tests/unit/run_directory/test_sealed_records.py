"""Whatever bit of a record is changed is noticed; what readers then do. Old records are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical, pretty, to_json
from orchestrator.contract.records import (
    LeaseRecord,
    LogRecord,
    SalvageRecord,
    SubmissionId,
    decode_record,
    encode_record,
)
from orchestrator.contract.spec import StartPoint
from orchestrator.contract.summary import RunSummary
from orchestrator.controller import lease
from orchestrator.errors import NewerVersion, RecordDamaged
from orchestrator.run_directory import attempts, records
from orchestrator.storage.memory import MemoryStorage
from tests.harness.clock import FakeClock
from tests.unit.helper.sites import JOB
from tests.unit.run_directory.test_create_only_records import CLAIM, SLOT, STOP, SUBMISSION, VERDICT

SAMPLES: list[Any] = [
    SUBMISSION,
    SubmissionId(number=1, backend_id="4711", time="2026-01-01T00:00:00.000Z"),
    CLAIM,
    SLOT,
    STOP,
    replace(VERDICT, message="ein „Wort“: 1e-05\n", notice="SIGTERM", notice_to_exit_s=1e-05),
    SalvageRecord(attempt=1, step=3, directory="d", adapter_sha256="0" * 64),
    LeaseRecord(seq=1, owner="o", expires_at="2026-01-01T00:00:00.000Z", pid=7),
    StartPoint(kind="checkpoint", step=10, directory="/runs/r/c", commit_seq=3),
    RunSummary(
        run_id="r",
        attempt=1,
        phase="training",
        step=10,
        total_steps=40,
        loss=1.25,
        learning_rate=1e-05,
        step_seconds=0.5,
        save_seconds=None,
        checkpoint_step=None,
        checkpoint_time=None,
        checkpoint_verified=False,
        preemptions=0,
        lost_steps=0,
        eta_s=15.0,
        time="2026-01-01T00:00:00.000Z",
    ),
    JOB,
]
WRITERS = [records.encode, records.encode_pretty]


def name(value: Any) -> str:
    return type(value).__name__


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
@pytest.mark.parametrize("write", WRITERS)
def test_every_single_bit_is_noticed(sample: Any, write: Callable[[Any], bytes]) -> None:
    good, missed = write(sample), []
    assert records.decode(type(sample), good, "p") == sample
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            records.decode(type(sample), bytes(data), "p")
            missed.append(bit)
        except RecordDamaged:
            continue
    assert missed == []


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_every_length_is_noticed(sample: Any) -> None:
    good = records.encode(sample)
    for data in [*(good[:n] for n in range(len(good))), good + b"\0", good + b" ", good * 2]:
        with pytest.raises(RecordDamaged):
            records.decode(type(sample), data, "p")


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
@pytest.mark.parametrize("plain", [canonical, pretty])
def test_records_of_early_versions_are_read(sample: Any, plain: Callable[[Any], bytes]) -> None:
    assert records.decode(type(sample), plain(to_json(sample)), "p") == sample


RECORD = LogRecord(seq=1, kind="fence", attempt=1, token="t", prev="", time="")


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_a_newer_schema_is_refused_in_one_sentence(sample: Any) -> None:
    newer = replace(sample, schema=sample.schema + 1)
    with pytest.raises(NewerVersion, match="p was made by a newer version of qvl-orch") as found:
        records.decode(type(sample), records.encode(newer), "p")
    assert found.value.exit_code == 78
    assert "\n" not in found.value.message


def flip(storage: MemoryStorage, path: str) -> None:
    data = bytearray(storage.get(path))
    at = data.index(b":") + 1
    data[at] ^= 1
    storage.put(path, bytes(data))


# --- what readers do


def test_a_damaged_submission_still_counts(memory: MemoryStorage) -> None:
    for number in (1, 2):
        attempts.create_submission(memory, replace(SUBMISSION, number=number))
    flip(memory, layout.submission(2))
    found = attempts.all_submissions(memory)
    assert [s.number for s in found.records] == [1]
    assert attempts.newest_number(found) == 2, "an agent of submission 1 is stale all the same"
    with pytest.raises(RecordDamaged, match=r"submissions/000002.json is damaged"):
        attempts.read_submission(memory, 2)


def test_a_damaged_slot_is_held_by_nobody_known(memory: MemoryStorage) -> None:
    for slot in (0, 1):
        attempts.create_slot(memory, replace(SLOT, slot=slot))
    flip(memory, layout.slot(1, 1))
    assert [(s.slot, s.host) for s in attempts.read_slots(memory, 1)] == [(0, "h"), (1, "")]
    attempts.write_verdict(memory, VERDICT)
    assert not attempts.has_ended(memory, 1), "slot 1 was claimed and left no verdict"


def test_a_damaged_verdict_is_an_end_without_a_word(memory: MemoryStorage) -> None:
    attempts.create_slot(memory, SLOT)
    attempts.write_verdict(memory, VERDICT)
    flip(memory, layout.verdict(1, 0))
    assert attempts.read_verdicts(memory, 1) == []
    assert attempts.has_ended(memory, 1)
    assert attempts.write_verdict(memory, VERDICT) == VERDICT
    assert attempts.read_verdicts(memory, 1) == [VERDICT], "its writer puts it right"


def test_a_damaged_stop_is_still_a_stop(memory: MemoryStorage) -> None:
    attempts.create_stop(memory, replace(STOP, slot=3, index=2))
    flip(memory, layout.stop(1, 3, 2))
    (stop,) = attempts.read_stops(memory, 1)
    assert (stop.slot, stop.index, stop.reason) == (3, 2, attempts.UNREADABLE)
    assert stop.seconds_left == float("inf"), "its reader knows the grace"
    assert attempts.create_stop(memory, replace(STOP, slot=3, index=2)).index == 3


def test_a_damaged_backend_id_is_noted_again(memory: MemoryStorage) -> None:
    note = SubmissionId(number=1, backend_id="7")
    attempts.record_backend_id(memory, note)
    flip(memory, layout.submission_id(1))
    with pytest.raises(RecordDamaged):
        attempts.read_submission_id(memory, 1)
    attempts.record_backend_id(memory, note)
    assert attempts.read_submission_id(memory, 1) == note


def test_a_damaged_lease_is_taken_over(memory: MemoryStorage) -> None:
    clock = FakeClock()
    attempts.write_job(memory, JOB)
    first = lease.Lease(memory, clock)
    assert first.acquire()
    flip(memory, layout.lease(1))
    assert not lease.is_live(lease.newest(memory), clock.now())
    second = lease.Lease(memory, clock)
    assert second.acquire()
    assert not first.acquire()


def test_log_records_keep_their_own_checksum() -> None:
    good = encode_record(RECORD)
    from orchestrator.contract.jsonio import MalformedJson, loads

    assert decode_record(loads(good), 1) == RECORD
    with pytest.raises(MalformedJson, match="does not match its checksum"):
        decode_record(loads(good.replace(b'"fence"', b'"dence"')), 1)


def test_the_job_says_what_to_do(memory: MemoryStorage) -> None:
    attempts.write_job(memory, JOB)
    assert attempts.read_job(memory) == JOB
    flip(memory, layout.RESOLVED)
    with pytest.raises(RecordDamaged, match="resolved.json is damaged") as found:
        attempts.read_job(memory)
    assert "backup" in (found.value.hint or "")
