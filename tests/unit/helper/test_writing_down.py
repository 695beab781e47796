"""Events, logs, summary and history: what fails costs lines, never the run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.event import Event
from orchestrator.contract.jsonio import canonical, from_json, loads
from orchestrator.contract.records import ClaimRecord, StopRecord, VerdictRecord
from orchestrator.contract.summary import RunSummary
from orchestrator.errors import StorageError
from orchestrator.helper import history
from orchestrator.helper.journal import Journal, SummaryWriter
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.run_directory.segments import read_lines, read_segments
from orchestrator.storage.memory import MemoryStorage
from tests.harness.clock import FakeClock
from tests.unit.run_directory import fakes
from tests.unit.run_directory.test_create_only_records import SUBMISSION


class Full(MemoryStorage):
    """Puts fail while it is full."""

    full = False

    def put(self, path: str, data: bytes) -> None:
        if self.full:
            raise StorageError("no space")
        super().put(path, data)


@pytest.fixture
def storage(memory: MemoryStorage) -> Full:
    return Full(memory.uri)


def journal(storage: MemoryStorage, clock: FakeClock, slot: int = 1) -> Journal:
    return Journal(storage, clock, 3, slot, 2)


def events(storage: MemoryStorage) -> list[Event]:
    return [
        from_json(Event, v) for _, v in read_segments(storage, layout.attempt_events(3, "node-1"))
    ]


def test_store_that_fails_is_asked_once_a_flush(storage: Full, clock: FakeClock) -> None:
    book = journal(storage, clock)
    book.event("stage", {})
    book.log(0, "a")
    book.log(1, "b")
    storage.full = True
    book.flush(force=True)
    assert book.failures == 1
    storage.full = False
    book.flush(force=True)
    assert len(events(storage)) == 1
    assert len(list(read_lines(storage, layout.logs(3, "rank-3")))) == 1


def test_events_and_logs(storage: Full, clock: FakeClock) -> None:
    book = journal(storage, clock)
    book.event("notice", {"reason": "SIGTERM"}, rank=1)
    book.event("stage", {})
    book.log(1, "line ä")
    book.flush(force=True)
    one, two = events(storage)
    assert (one.seq, one.rank, one.attempt, one.writer) == (1, 3, 3, "node-1")
    assert (two.seq, two.rank) == (2, None)
    assert [t for _, t in read_lines(storage, layout.logs(3, "rank-3"))] == [
        "2023-11-14T22:13:20.000Z line ä".encode()
    ]


def test_flushes_are_rare_unless_forced(storage: Full, clock: FakeClock) -> None:
    book = journal(storage, clock)
    book.event("stage", {})
    book.flush()
    assert events(storage) == []
    clock.advance(2.1)
    book.flush()
    assert len(events(storage)) == 1


def test_a_full_disk_costs_nothing_but_time(storage: Full, clock: FakeClock) -> None:
    book = journal(storage, clock)
    storage.full = True
    for number in range(3):
        book.event("stage", {"n": number})
        book.log(0, "x")
        book.flush(force=True)
    assert book.failures == 3
    storage.full = False
    book.flush(force=True)
    assert [e.data["n"] for e in events(storage)] == [0, 1, 2]


@pytest.mark.parametrize(
    "data", [{"loss": math.nan}, {"a": [math.inf]}, {"a": {1, 2}}, {"a": "\ud800"}, {"a": object}]
)
def test_data_that_json_cannot_hold_never_stops_the_helper(
    storage: Full, clock: FakeClock, data: dict[str, Any]
) -> None:
    book = journal(storage, clock)
    book.event("evaluated", data)
    book.event("stage", {})
    book.flush(force=True)
    one, two = events(storage)
    assert (one.kind, list(one.data)) == ("evaluated", ["unprintable"])
    assert two.seq == 2


def test_a_line_of_log_that_is_no_text(storage: Full, clock: FakeClock) -> None:
    book = journal(storage, clock)
    book.log(0, "half \ud800 a pair")
    book.flush(force=True)
    assert b"half ? a pair" in storage.list(layout.logs(3, "rank-2"))[0].path.encode() + b"".join(
        line for _, line in read_lines(storage, layout.logs(3, "rank-2"))
    )


# --- summary


FIRST = history.first_summary(MemoryStorage("memory://none"), LogView(), "run", 1, None)


def summary(storage: MemoryStorage) -> RunSummary:
    return from_json(RunSummary, loads(storage.get(layout.SUMMARY)))


def test_it_is_written_at_once_for_what_people_wait_for_else_now_and_then(
    storage: Full, clock: FakeClock
) -> None:
    writer = SummaryWriter(storage, clock, FIRST, 10.0)
    writer.write()
    assert summary(storage).phase == "starting"
    writer.change(phase="training")
    writer.write()
    assert summary(storage).phase == "training"
    writer.change(step=5)
    writer.write()
    assert summary(storage).step == 0
    clock.advance(10.0)
    writer.write()
    assert summary(storage).step == 5
    writer.change(checkpoint_step=5)
    writer.write()
    assert summary(storage).checkpoint_step == 5


def test_a_write_that_failed_is_tried_again(storage: Full, clock: FakeClock) -> None:
    writer = SummaryWriter(storage, clock, FIRST, 10.0)
    storage.full = True
    writer.write()
    storage.full = False
    writer.write()
    assert summary(storage).phase == "starting"


def test_progress(storage: Full, clock: FakeClock) -> None:
    writer = SummaryWriter(storage, clock, FIRST, 10.0)
    for step, seconds in enumerate((1.0, 9.0, 2.0), 1):
        writer.progress(
            {
                "step": step,
                "total_steps": 10,
                "loss": 0.5,
                "learning_rate": 1e-3,
                "step_seconds": seconds,
            }
        )
    writer.write(force=True)
    found = summary(storage)
    assert (found.step, found.total_steps, found.step_seconds, found.eta_s) == (3, 10, 2.0, 14.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, None, "x"])
def test_a_loss_that_is_no_number_never_stops_the_helper(
    storage: Full, clock: FakeClock, loss: Any
) -> None:
    writer = SummaryWriter(storage, clock, FIRST, 10.0)
    writer.progress({"step": 1, "total_steps": 2, "loss": loss, "learning_rate": loss})
    writer.write(force=True)
    assert summary(storage).loss is None


# --- history


def test_a_first_summary_knows_the_past(storage: Full, clock: FakeClock) -> None:
    log = RunLog(storage, clock)
    log.append("fence", 1)
    fakes.commit(storage, log, 10, trigger="notice")
    for number in (1, 2, 3):
        attempts.create_claim(
            storage,
            ClaimRecord(
                attempt=number,
                submission=number,
                backend_id="a",
                restart_count=0,
                token="t",
                plan=fakes.PLAN,
            ),
        )
    log.append("fence", 2)
    attempts.create_stop(
        storage, StopRecord(attempt=2, slot=0, index=1, reason="SIGTERM", seconds_left=1.0)
    )
    log.append("fence", 3)
    attempts.write_verdict(storage, VerdictRecord(attempt=3, slot=0, code=1, reason="crash"))
    log.append("fence", 4)
    before = attempts.read_summary(storage)
    found = history.first_summary(storage, log.read(), "run", 4, before)
    assert (found.preemptions, found.checkpoint_step, found.attempt) == (2, 10, 4)
    assert found.checkpoint_time == log.read().records[1].time


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_summary_is_none(storage: Full, data: bytes) -> None:
    storage.put(layout.SUMMARY, data)
    assert attempts.read_summary(storage) is None


def test_lost_steps(storage: Full) -> None:
    lines = [{"step": 11}, {"step": 12}, {"step": "13"}, [], {"loss": 1}]
    storage.put(layout.segment(layout.metrics(1, 0), 1), b"\n".join(map(canonical, lines)))
    for attempt, start, lost in [(2, 10, 2), (2, 12, 0), (2, 20, 0), (1, 0, 0), (3, 10, 0)]:
        assert history.lost_steps(storage, attempt, start, None)[0] == lost


def test_lost_steps_that_no_metrics_tell_of(storage: Full) -> None:
    """A full storage took the summary, which a reserve keeps room for, or an event."""
    ended = replace(FIRST, step=340, phase="ended")
    assert history.lost_steps(storage, 2, 20, ended) == (320, True)
    assert history.lost_steps(storage, 2, 20, replace(ended, phase="training")) == (320, False)
    assert history.lost_steps(storage, 3, 20, ended) == (0, False), "it tells of another attempt"
    line = {"kind": "save_failed", "data": {"step": 360}}
    storage.put(layout.segment(layout.attempt_events(1, "node-0"), 1), canonical(line))
    assert history.lost_steps(storage, 2, 20, ended) == (340, True)


def test_a_preemption_whose_verdict_was_not_stored_is_counted(storage: Full) -> None:
    second = replace(SUBMISSION, number=2, reason="requeue", ended="stopped")
    for record in (SUBMISSION, second):
        attempts.create_submission(storage, record)
    claim = ClaimRecord(
        attempt=1, submission=1, backend_id="a", restart_count=0, token="t", plan=fakes.PLAN
    )
    attempts.create_claim(storage, claim)
    assert history.first_summary(storage, LogView(), "run", 2, None).preemptions == 1
