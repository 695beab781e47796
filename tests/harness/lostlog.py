"""A run that loses its log, in whole or in part, and what must come of it anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import LogRecord
from orchestrator.errors import LogDamaged
from orchestrator.operations.actions import resume
from orchestrator.operations.checkpoints import prune
from orchestrator.operations.repair import Findings, examine, repair
from orchestrator.storage.protocol import Storage
from tests.harness.runs import Driven

Choice = Callable[[Sequence[LogRecord]], list[int]]
"""Numbers of the records that are lost."""


def everything(records: Sequence[LogRecord]) -> list[int]:
    return [r.seq for r in records]


def the_first(records: Sequence[LogRecord]) -> list[int]:
    return [r.seq for r in records[:1]]


def one_between(records: Sequence[LogRecord]) -> list[int]:
    return [next(r.seq for r in records if r.kind == "commit")]


def from_the_newest_commit_on(records: Sequence[LogRecord]) -> list[int]:
    newest = max(r.seq for r in records if r.kind == "commit")
    return [r.seq for r in records if r.seq >= newest]


LOSSES = [everything, the_first, one_between, from_the_newest_commit_on]


def files(storage: Storage) -> dict[str, int]:
    """Everything but the log: what must still be there afterwards."""
    return {
        e.path: e.size_bytes
        for e in storage.list("", deep=True)
        if e.path.startswith(layout.ATTEMPTS) and "/checkpoints/" in e.path
    }


def held_with_everything_there(run: Driven, lost: Choice) -> dict[str, int]:
    """The log loses records; the run is held, and no file of a checkpoint goes. What is there."""
    before = files(run.storage)
    for seq in lost(run.records()):
        run.storage.delete(layout.log_record(seq))
    run.hurry()
    held = run.drive()
    assert (held.state, held.row["reason"]) == ("HELD", "damaged"), held.row
    assert "log" in held.row["message"]
    assert held.row["next"] == f"qvl-orchestrate repair {run.run.run_id}"
    with pytest.raises(LogDamaged, match="nothing is deleted"):
        prune(run.run, 1, lambda _: None)
    with pytest.raises(LogDamaged, match="nothing is deleted"):
        resume(run.run)
    assert files(run.storage) == before
    return before


def repaired_and_finished(run: Driven, before: dict[str, int]) -> Findings:
    """The log is made anew from what is there, and the run ends as if nothing had happened."""
    old = run.storage.list(layout.LOG)
    shown = examine(run.run)
    assert shown.log_fault
    assert run.storage.list(layout.LOG) == old, "showing changes nothing"
    found = repair(run.run)
    assert [r.body for r in found.records] == [r.body for r in shown.records]
    assert files(run.storage) == before, "nothing is deleted"
    assert examine(run.run).log_fault == ""
    assert found.copy is not None
    assert len(run.storage.list(f"{found.copy}log/")) == len(old)
    resume(run.run)
    assert run.drive().state == "SUCCEEDED"
    return found
