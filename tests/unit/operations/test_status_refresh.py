"""`status` of runs whose storage is slow or away: what is known is shown, kept, and dated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import Observation
from orchestrator.backends.kubernetes.backend import CAPABILITIES
from orchestrator.clock import SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.records import SubmissionId
from orchestrator.contract.summary import RunSummary
from orchestrator.controller import status_rows
from orchestrator.controller.lease import Lease
from orchestrator.controller.reconcile import reconcile
from orchestrator.controller.run import Run
from orchestrator.errors import StorageError
from orchestrator.operations import status
from orchestrator.operations.status import Snapshot
from orchestrator.run_directory import attempts
from tests.harness.faulty import Faulty
from tests.harness.runs import Bench
from tests.unit.cli.shells import RUN, Built

AWAY = StorageError("s3://b/r: https://s3 does not answer")


@dataclass
class Remote:
    """A backend that is not free to ask; its one job is at work until told otherwise."""

    capabilities: Any = CAPABILITIES
    phase: str = "running"
    asked: list[str] = field(default_factory=list)

    def observe(self, ids: Sequence[str]) -> dict[str, Observation]:
        self.asked += ids
        return {i: Observation(phase=self.phase) for i in ids}  # type: ignore[arg-type]


class Elsewhere:
    """A run that is looked after on another machine; this registry only knows that it exists."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.bench = Bench(folder)
        self.built = Built(self.bench)
        self.built.storage.delete(layout.TOMBSTONE)
        attempts.record_backend_id(self.built.storage, SubmissionId(number=1, backend_id="job"))
        for attempt in (1, 2):
            self.built.claim(attempt)
            self.built.log.append("fence", attempt)
        self.storage = Faulty(self.built.storage)
        self.backend = Remote()
        self.delay_s = 0.0
        self.storage.plan = self._slow
        self.fault: Exception | None = None
        patch.setattr(self.storage, "local_path", lambda _: None)
        run = Run(
            self.built.entry,
            self.bench.registry,
            self.storage,
            self.backend,  # type: ignore[arg-type]
            SystemClock(),
        )
        patch.setattr(status, "open_entry", lambda _, entry, __: replace(run, entry=entry))
        self.run = run
        self.held = Lease(self.built.storage, SystemClock())
        assert self.held.acquire()

    def _slow(self, verb: str, path: str) -> Exception | None:
        time.sleep(self.delay_s)
        return self.fault

    def summary(self, step: int, phase: str = "training") -> None:
        told = RunSummary(
            run_id=RUN,
            attempt=2,
            phase=phase,
            step=step,
            total_steps=400,
            loss=0.5,
            learning_rate=1e-3,
            step_seconds=1.0,
            save_seconds=1.0,
            checkpoint_step=60,
            checkpoint_time=iso(SystemClock().now()),
            checkpoint_verified=True,
            preemptions=1,
            lost_steps=0,
            eta_s=300.0,
            time=iso(SystemClock().now()),
        )
        self.built.storage.put(layout.SUMMARY, pretty(to_json(told)))

    def look(self) -> tuple[Snapshot, dict[str, Any]]:
        """What `status --json` says, and the ages in it."""
        (seen,) = status.snapshot(self.bench.registry, SystemClock(), self.bench.registry.runs())
        now = SystemClock().now()
        return seen, status_rows.age_fields(seen.seen_at, now, final=seen.final, fault=seen.fault)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    return Elsewhere(tmp_path, monkeypatch)


@pytest.mark.parametrize("delay_s", [0.15, 0.4])
def test_a_slow_storage_does_not_make_a_run_look_queued(
    elsewhere: Elsewhere, delay_s: float
) -> None:
    elsewhere.summary(65)
    elsewhere.delay_s = delay_s
    started = time.monotonic()
    seen, age = elsewhere.look()
    assert (seen.row["state"], seen.row["step"], seen.row["attempt"]) == ("RUNNING", 65, 2)
    assert age["fault"] is None
    assert age["stale_s"] <= status.STALE_BUDGET_S
    assert time.monotonic() - started < status.STALE_BUDGET_S + 1
    elsewhere.summary(400, "ended")
    elsewhere.built.storage.put(layout.DONE, b"{}")
    elsewhere.bench.registry.refreshed([(RUN, seen.row, False, seen.seen_at)])
    over, _ = _older(elsewhere).look()
    assert (over.row["state"], over.row["step"]) == ("SUCCEEDED", 400)


def _older(elsewhere: Elsewhere) -> Elsewhere:
    """As if what the registry knows were from a while ago."""
    (entry,) = elsewhere.bench.registry.runs()
    assert entry.row is not None
    elsewhere.bench.registry.saw(RUN, entry.row, final=entry.final, at=entry.seen_at - 100.0)
    return elsewhere


def test_what_was_seen_is_kept_and_dated_while_the_storage_is_away(elsewhere: Elsewhere) -> None:
    elsewhere.summary(65)
    before, _ = elsewhere.look()
    assert elsewhere.bench.registry.find(RUN).row["step"] == 65  # type: ignore[index]
    elsewhere.fault = AWAY
    seen, age = _older(elsewhere).look()
    assert (seen.row["state"], seen.row["step"]) == ("RUNNING", 65)
    assert age["fault"] == AWAY.message
    assert 100 <= age["stale_s"] < 110
    assert age["last_seen"] == iso(before.seen_at - 100.0)
    elsewhere.fault = None
    elsewhere.summary(66)
    seen, age = elsewhere.look()
    assert (seen.row["step"], age["fault"]) == (66, None)


def test_what_was_never_seen_is_called_unknown(elsewhere: Elsewhere) -> None:
    elsewhere.fault = AWAY
    seen, age = elsewhere.look()
    assert seen.row["state"] == "UNKNOWN"
    assert age == {"stale_s": None, "last_seen": None, "fault": AWAY.message}


def test_no_controller_is_told_of_a_run_at_work_on_a_slow_storage(elsewhere: Elsewhere) -> None:
    elsewhere.summary(65)
    elsewhere.delay_s = 0.15
    assert elsewhere.look()[0].row["next"] is None
    elsewhere.held.release()
    seen, _ = _older(elsewhere).look()
    assert seen.row["state"] == "RUNNING"
    assert seen.row["next"].startswith("no controller since ")


def test_what_a_reader_remembers_leaves_the_record_to_the_controller(
    elsewhere: Elsewhere,
) -> None:
    """A reader that sees the end first: the controller still records it, once."""
    elsewhere.summary(65)
    elsewhere.look()
    elsewhere.built.storage.create(layout.TOMBSTONE, b"{}")
    elsewhere.backend.phase = "gone"
    seen, _ = _older(elsewhere).look()
    assert seen.row["state"] == "CANCELLED"
    assert not elsewhere.bench.registry.find(RUN).final
    for _ in range(2):
        assert reconcile(elsewhere.run).state == "CANCELLED"
    folder = layout.run_events("controller")
    events = [elsewhere.built.storage.get(e.path) for e in elsewhere.built.storage.list(folder)]
    assert [b'"cancelled"' in line for line in events] == [True]
    assert elsewhere.bench.registry.find(RUN).final


def test_a_reader_that_comes_late_changes_nothing(elsewhere: Elsewhere) -> None:
    registry = elsewhere.bench.registry
    registry.saw(RUN, {"state": "HELD"}, final=False, at=200.0)
    registry.refreshed([(RUN, {"state": "RUNNING"}, False, 100.0)])
    assert registry.find(RUN).row == {"state": "HELD"}


def test_the_registry_cannot_be_written_and_status_is_shown_all_the_same(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    elsewhere.summary(65)
    monkeypatch.setattr(elsewhere.bench.registry, "refreshed", full)
    assert elsewhere.look()[0].row["step"] == 65
