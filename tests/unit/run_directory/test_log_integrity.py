"""When a log counts as shorter than it was, and when nothing but a crash has happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Done, encode_record
from orchestrator.contract.spec import StartPoint
from orchestrator.contract.summary import RunSummary
from orchestrator.errors import LogDamaged
from orchestrator.run_directory import attempts, log_integrity, records
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.memory import MemoryStorage
from tests.unit.run_directory import fakes
from tests.unit.run_directory.test_create_only_records import CLAIM, SLOT, VERDICT
from tests.unit.run_directory.test_sealed_records import SAMPLES

SUMMARY = next(s for s in SAMPLES if isinstance(s, RunSummary))
FENCE_1, COMMIT_10, FENCE_2, COMMIT_20 = 1, 2, 3, 4


@pytest.fixture
def run(memory: MemoryStorage) -> MemoryStorage:
    """Two attempts, each with a checkpoint; the second has ended by a notice."""
    log = RunLog(memory)
    for attempt, step in ((1, 10), (2, 20)):
        known = log.read().last_seq
        attempts.create_claim(memory, replace(CLAIM, attempt=attempt, log_seq=known))
        log.append("fence", attempt)
        attempts.create_slot(memory, replace(SLOT, attempt=attempt))
        fakes.commit(memory, log, step, attempt=attempt)
    where = f"/runs/r/{layout.checkpoint_dir(1, 10)}"
    start = StartPoint(kind="checkpoint", step=10, directory=where, commit_seq=COMMIT_10)
    attempts.write_start(memory, 2, start)
    attempts.write_verdict(memory, replace(VERDICT, attempt=2))
    told = replace(SUMMARY, attempt=2, checkpoint_step=20)
    memory.put(layout.SUMMARY, records.encode(told))
    return memory


def fault(storage: MemoryStorage) -> str:
    return log_integrity.fault(storage, RunLog(storage).read())


def cut(storage: MemoryStorage, first: int) -> None:
    """The log ends before record `first`."""
    for entry in storage.list(layout.LOG):
        if (layout.number_of(entry.path) or 0) >= first:
            storage.delete(entry.path)


def test_a_whole_log(run: MemoryStorage) -> None:
    assert fault(run) == ""
    log_integrity.require_whole(run, RunLog(run).read())


@pytest.mark.parametrize("first", [FENCE_1, COMMIT_10, FENCE_2, COMMIT_20])
def test_a_log_that_ends_too_early(run: MemoryStorage, first: int) -> None:
    cut(run, first)
    assert fault(run)
    with pytest.raises(LogDamaged, match="nothing is deleted"):
        log_integrity.require_whole(run, RunLog(run).read())


def claim_only(run: MemoryStorage) -> None:
    for path in (layout.start_point(2), layout.verdict(2, 0), layout.SUMMARY, layout.slot(2, 0)):
        run.delete(path)


def slot_only(run: MemoryStorage) -> None:
    claim_only(run)
    run.put(layout.claim(2), records.encode(replace(CLAIM, attempt=2)))
    attempts.create_slot(run, replace(SLOT, attempt=2))


def start_only(run: MemoryStorage) -> None:
    run.delete(layout.SUMMARY)
    run.put(layout.claim(2), records.encode(replace(CLAIM, attempt=2)))
    run.delete(layout.slot(2, 0))
    run.delete(layout.verdict(2, 0))


@pytest.mark.parametrize(
    ("leave", "first", "words"),
    [
        (claim_only, COMMIT_10, "attempt 2 found 2 when it began"),
        (slot_only, FENCE_2, "lacks the fence of attempt 2"),
        (start_only, COMMIT_10, "lacks the checkpoint that attempt 2 started from"),
        (lambda run: run.delete(layout.SUMMARY), COMMIT_20, "lacks what attempt 2 committed"),
        (lambda run: run.delete(layout.verdict(2, 0)), COMMIT_20, "the checkpoint of step 20"),
    ],
)
def test_each_witness_is_enough(
    run: MemoryStorage, leave: Callable[[MemoryStorage], object], first: int, words: str
) -> None:
    leave(run)
    assert fault(run) == ""
    cut(run, first)
    assert words in fault(run)


def test_the_end_of_the_run_is_lost(run: MemoryStorage) -> None:
    done = Done(commit_seq=COMMIT_20, step=20, adapter_sha256="a")
    record = RunLog(run).append("done", 2, to_json(done))
    run.put(layout.DONE, encode_record(record))
    assert fault(run) == ""
    cut(run, record.seq)
    assert fault(run) == "the run's log lacks the end that done.json tells of"


def test_the_claims_are_lost(run: MemoryStorage) -> None:
    run.delete(layout.claim(2))
    assert fault(run) == "the claim of attempt 2 has gone"


def test_records_that_went_while_a_process_knew_them(run: MemoryStorage) -> None:
    view = RunLog(run).read()
    run.delete(layout.log_record(COMMIT_10))
    assert log_integrity.fault(run, view) == "record 2 of the run's log has gone"


def test_a_witness_that_is_younger_than_the_view_is_no_fault(run: MemoryStorage) -> None:
    view = RunLog(run).read()
    fakes.commit(run, RunLog(run), 30, attempt=2)
    run.put(layout.SUMMARY, records.encode(replace(SUMMARY, attempt=2, checkpoint_step=30)))
    assert log_integrity.fault(run, view) == ""


def test_what_a_crash_leaves_is_no_fault(run: MemoryStorage) -> None:
    """A claim without its fence, then the next attempt's; a manifest without its record."""
    attempts.create_claim(run, replace(CLAIM, attempt=3, log_seq=4))
    fakes.write(run, 30, attempt=2)
    assert fault(run) == ""
    attempts.create_claim(run, replace(CLAIM, attempt=4, log_seq=4))
    RunLog(run).append("fence", 4)
    attempts.create_slot(run, replace(SLOT, attempt=4))
    assert fault(run) == ""


def test_a_new_run(memory: MemoryStorage) -> None:
    assert fault(memory) == ""
    attempts.create_claim(memory, CLAIM)
    assert fault(memory) == ""
