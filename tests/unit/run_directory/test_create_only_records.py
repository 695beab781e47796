"""Submissions, claims, slots, stops and verdicts: create-only objects and their lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import (
    ClaimRecord,
    SlotRecord,
    StopRecord,
    SubmissionId,
    SubmissionRecord,
    VerdictRecord,
)
from orchestrator.contract.spec import StartFrom, TrainSpec
from orchestrator.errors import CheckpointError
from orchestrator.run_directory import attempts
from orchestrator.storage.memory import MemoryStorage
from tests.unit.run_directory.fakes import PLAN

SPEC = TrainSpec(
    run_id="r",
    storage="memory://r",
    submission=1,
    backend="local",
    nodes=1,
    gpus_per_node=2,
    grace_s=60.0,
    python="python",
)
SUBMISSION = SubmissionRecord(number=1, key="k", token="t", spec=SPEC, start=StartFrom())
CLAIM = ClaimRecord(attempt=1, submission=1, backend_id="7", restart_count=0, token="t", plan=PLAN)
SLOT = SlotRecord(
    attempt=1, slot=0, token="t", host="h", address="a", port=1, pid=2, backend_id="7"
)
STOP = StopRecord(attempt=1, slot=0, index=1, reason="SIGTERM", seconds_left=60.0)
VERDICT = VerdictRecord(attempt=1, slot=0, code=75, reason="preempted", rank_codes=(75, None))


def test_submissions(memory: MemoryStorage) -> None:
    assert attempts.create_submission(memory, SUBMISSION) is None
    other = replace(SUBMISSION, token="u")
    assert attempts.create_submission(memory, other) == SUBMISSION
    for number in (12, 2):
        attempts.create_submission(memory, replace(SUBMISSION, number=number))
    attempts.record_backend_id(memory, SubmissionId(number=1, backend_id="7"))
    attempts.record_backend_id(memory, SubmissionId(number=1, backend_id="8"))
    assert [s.number for s in attempts.read_submissions(memory)] == [1, 2, 12]
    assert attempts.read_submission_id(memory, 1) == SubmissionId(number=1, backend_id="7")
    assert attempts.read_submission_id(memory, 2) is None
    anew = SubmissionId(number=1, backend_id="7", uid="second")
    attempts.record_backend_id(memory, anew)
    assert attempts.read_submission_id(memory, 1) == anew, "given back, and made once more"


def test_claims_are_ordered_and_once(memory: MemoryStorage) -> None:
    assert attempts.create_claim(memory, CLAIM) is None
    assert attempts.create_claim(memory, CLAIM) is None, "a lost reply"
    assert attempts.create_claim(memory, replace(CLAIM, token="u")) == CLAIM
    attempts.create_claim(memory, replace(CLAIM, attempt=11))
    attempts.create_claim(memory, replace(CLAIM, attempt=3))
    memory.put("attempts/000001/start.json", b"{}")
    assert [c.attempt for c in attempts.read_claims(memory)] == [1, 3, 11]


def test_slots(memory: MemoryStorage) -> None:
    assert attempts.create_slot(memory, SLOT) is None
    assert attempts.create_slot(memory, replace(SLOT, token="u")) == SLOT
    attempts.create_slot(memory, replace(SLOT, slot=10))
    attempts.create_slot(memory, replace(SLOT, slot=2))
    assert [s.slot for s in attempts.read_slots(memory, 1)] == [0, 2, 10]
    assert attempts.read_slots(memory, 2) == []


def test_stops_take_the_next_free_index(memory: MemoryStorage) -> None:
    assert attempts.create_stop(memory, STOP).index == 1
    assert attempts.create_stop(memory, replace(STOP, reason="SIGUSR1")).index == 2
    assert attempts.create_stop(memory, STOP).index == 1, "the same request again"
    assert {s.index for s in attempts.read_stops(memory, 1)} == {1, 2}


def test_a_verdict_is_written_once(memory: MemoryStorage) -> None:
    assert attempts.write_verdict(memory, VERDICT) == VERDICT
    assert attempts.write_verdict(memory, replace(VERDICT, code=1)) == VERDICT
    assert attempts.read_verdicts(memory, 1) == [VERDICT]


def test_tombstone(memory: MemoryStorage) -> None:
    assert not attempts.has_tombstone(memory)
    memory.create(layout.TOMBSTONE, b"x")
    assert attempts.has_tombstone(memory)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"attempt": 1}'])
def test_a_damaged_record_is_named(memory: MemoryStorage, data: bytes) -> None:
    attempts.create_claim(memory, replace(CLAIM, attempt=2))
    memory.put(layout.claim(1), data)
    assert [c.attempt for c in attempts.read_claims(memory)] == [2]
    assert attempts.all_claims(memory).damaged == (layout.claim(1),)
    assert attempts.attempt_numbers(memory) == [1, 2]
    with pytest.raises(CheckpointError, match="attempts/000001.json is damaged"):
        attempts.create_claim(memory, CLAIM)
