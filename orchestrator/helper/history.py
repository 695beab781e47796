"""What earlier attempts left: the figures a new attempt's summary begins with."""

from __future__ import annotations

from orchestrator.contract import layout
from orchestrator.contract.summary import RunSummary
from orchestrator.domain.verdict import attempt_verdict
from orchestrator.errors import RecordDamaged
from orchestrator.storage import attempts, records
from orchestrator.storage.checkpoints import live_commits
from orchestrator.storage.protocol import NotFound, Storage
from orchestrator.storage.runlog import LogView
from orchestrator.storage.segments import read_segments


def read_summary(storage: Storage) -> RunSummary | None:
    """summary.json, or None if there is none that can be read: its helper writes it anew."""
    try:
        return records.read(storage, RunSummary, layout.SUMMARY)
    except (NotFound, RecordDamaged):
        return None


def first_summary(storage: Storage, view: LogView, run_id: str, attempt: int) -> RunSummary:
    """The summary of an attempt that has just been claimed."""
    before = read_summary(storage)
    live = live_commits(view)
    newest = live[-1] if live else None
    preemptions = 0
    for number in attempts.attempt_numbers(storage):
        if number < attempt and _preempted(storage, view, number):
            preemptions += 1
    return RunSummary(
        run_id=run_id,
        attempt=attempt,
        phase="starting",
        step=before.step if before else 0,
        total_steps=before.total_steps if before else 0,
        loss=before.loss if before else None,
        learning_rate=None,
        step_seconds=before.step_seconds if before else None,
        save_seconds=before.save_seconds if before else None,
        checkpoint_step=newest.commit().step if newest else None,
        checkpoint_time=newest.time if newest else None,
        checkpoint_verified=before is not None
        and before.checkpoint_verified
        and newest is not None
        and before.checkpoint_step == newest.commit().step,
        preemptions=preemptions,
        lost_steps=before.lost_steps if before else 0,
        eta_s=None,
        time="",
    )


def _preempted(storage: Storage, view: LogView, attempt: int) -> bool:
    verdict = attempt_verdict(
        attempt,
        view.records,
        attempts.read_slots(storage, attempt),
        attempts.read_stops(storage, attempt),
        attempts.read_verdicts(storage, attempt),
    )
    return verdict.preempted


def lost_steps(storage: Storage, attempt: int, start_step: int) -> int:
    """Steps that the attempt before computed and this one must compute again."""
    if attempt <= 1:
        return 0
    reached = max(
        (
            int(line["step"])
            for _, line in read_segments(storage, layout.metrics(attempt - 1, 0))
            if isinstance(line, dict) and isinstance(line.get("step"), int)
        ),
        default=start_step,
    )
    return max(0, reached - start_step)
