"""What earlier attempts left: the figures a new attempt's summary begins with."""

from __future__ import annotations

from orchestrator.contract import layout
from orchestrator.contract.records import Ending
from orchestrator.contract.summary import RunSummary
from orchestrator.domain.verdict import attempt_verdict
from orchestrator.run_directory import attempts
from orchestrator.run_directory.checkpoints import live_commits
from orchestrator.run_directory.runlog import LogView
from orchestrator.run_directory.segments import read_events, read_segments
from orchestrator.storage.protocol import Storage


def first_summary(
    storage: Storage, view: LogView, run_id: str, attempt: int, before: RunSummary | None
) -> RunSummary:
    """The summary of an attempt that has just been claimed; `before` is what stood there."""
    live = live_commits(view)
    newest = live[-1] if live else None
    preemptions = 0
    endings = _endings(storage)
    for number in attempts.attempt_numbers(storage):
        if number < attempt and _preempted(storage, view, number, endings.get(number, "")):
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
        lost_exact=before.lost_exact if before else True,
        eta_s=None,
        time="",
    )


def _endings(storage: Storage) -> dict[int, Ending]:
    """How the scheduler says that the jobs of earlier submissions ended, by their last attempt."""
    last = {claim.submission: claim.attempt for claim in attempts.read_claims(storage)}
    submissions = attempts.read_submissions(storage)
    return {last[s.number - 1]: s.ended for s in submissions if s.number - 1 in last}


def _preempted(storage: Storage, view: LogView, attempt: int, ending: Ending) -> bool:
    verdict = attempt_verdict(
        attempt,
        view.records,
        attempts.read_slots(storage, attempt),
        attempts.read_stops(storage, attempt),
        attempts.read_verdicts(storage, attempt),
        ending,
    )
    return verdict.preempted


def lost_steps(
    storage: Storage, attempt: int, start_step: int, summary: RunSummary | None
) -> tuple[int, bool]:
    """Steps that the attempt before computed and this one must compute again, and whether that
    is all: an attempt that could not write its last word may have come further.

    summary: as the attempt before left it
    """
    if attempt <= 1:
        return 0, True
    before = attempt - 1
    lines = [line for _, line in read_segments(storage, layout.metrics(before, 0))]
    known = [
        int(n["step"]) for n in lines if isinstance(n, dict) and isinstance(n.get("step"), int)
    ]
    exact = False
    if summary is not None and summary.attempt == before:
        known.append(summary.step)
        exact = summary.phase in ("starting", "ended")
    for event in read_events(storage, before, ("save_failed", "save_started", "stop_agreed")):
        step = event["data"].get("step")
        known += [step] if isinstance(step, int) else []
    return max(0, max(known, default=start_step) - start_step), exact
