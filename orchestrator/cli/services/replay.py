"""`verify --replay`: some steps of a run once more, by a copy of it that is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import note
from orchestrator.cli.services.follow import leave_controller, watch
from orchestrator.cli.services.job import submitter
from orchestrator.cli.services.proofs import Record, gather, kept_manifest
from orchestrator.config.load import load_site
from orchestrator.contract import layout
from orchestrator.contract.spec import StartFrom
from orchestrator.controller import trust
from orchestrator.domain import proof, replay
from orchestrator.domain.states import State
from orchestrator.errors import UserError
from orchestrator.operations import actions
from orchestrator.operations.submit import name_of_copy, submit
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.opening import child

if TYPE_CHECKING:
    from orchestrator.contract.records import LogRecord
    from orchestrator.contract.resolved import ResolvedJob
    from orchestrator.controller.run import Run

KEEP = 1000
"""Checkpoints of a copy: all, to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What became of computing some steps again."""

    run_id: str
    """Of the copy."""
    first: int
    """The step of the checkpoint that it began with; 0: the run's own beginning."""
    last: int
    checks: tuple[proof.Check, ...]

    @property
    def holds(self) -> bool:
        """Steps were compared, and nothing differs."""
        results = {check.name: check.result for check in self.checks}
        return results.get(replay.SAMPLES) == "equal" and "differs" not in results.values()


def compute_again(
    run: Run, record: Record, *, ref: str | None, steps: int, site: Path | None, keep: bool
) -> Replay:
    """Train `steps` steps of `run` once more, on its own backend, and compare.

    ref: a checkpoint of the run, or `0`; None = the newest with recorded steps after it
    keep: the copy, also when nothing differs

    Raises UserError if there is nothing to compare, or the copy did not come so far.
    """
    window, source = _choose(run, record, ref, steps)
    copy = _submit(run, source, site)
    note(f"computing steps {window.first + 1} to {window.last} again as {copy.run_id}")
    _train(copy, window.last)
    checks = tuple(_compare(run, record, copy, source, window))
    found = Replay(run_id=copy.run_id, first=window.first, last=window.last, checks=checks)
    if found.holds and not keep:
        _remove(copy)
    return found


def _remove(copy: Run) -> None:
    try:
        actions.remove(copy)
    except UserError:  # its job may take a while to leave the queue
        note(f"the copy is still at work; later: qvl-orchestrate rm {copy.run_id}")


def _choose(
    run: Run, record: Record, ref: str | None, count: int
) -> tuple[replay.Window, LogRecord | None]:
    """Which steps, and the checkpoint before them; None: the run's beginning."""
    live = checkpoints.live_commits(RunLog(run.storage).read())
    if ref == "0":
        live = []
    elif ref is not None:
        live = [actions.find_commit(live, ref)]
    kept = {commit.commit().step: commit for commit in live}
    steps = [row.step for row in record.curves.get(0, ())]
    window = replay.choose_window(steps, list(kept), count)
    if window is None or (kept and ref is not None and window.first not in kept):
        raise UserError(
            f"run {run.run_id} has recorded no step after {ref or 'any checkpoint'}",
            hint="choose an older checkpoint with --from, or 0 for the run's beginning",
        )
    if window.first == 0 and any(e.kind == "weights" for e in record.evidence):
        raise UserError(
            f"run {run.run_id} was restarted from weights: its steps do not lead to its beginning",
            hint="name a checkpoint with --from",
        )
    return window, kept.get(window.first)


def _submit(run: Run, source: LogRecord | None, site: Path | None) -> Run:
    """A copy of the run, with a controller; it begins where `source` lies."""
    trust.require(run)
    newest = attempts.read_submissions(run.storage)[-1]
    copy = submit(
        _copied(run.job(newest.spec.resolved)),
        run.storage.get(layout.JOB).decode(),
        submitter(load_site(site)),
        start=_start(run, source),
        allow_change=newest.spec.allow_change,
    )
    leave_controller(copy)
    return copy


def _copied(job: ResolvedJob) -> ResolvedJob:
    """The same training, that reports to no tracker and keeps what it saves."""
    return replace(
        job,
        name=name_of_copy(job.name, "replay"),
        training={**job.training, "report_to": "none"},
        checkpoint=replace(job.checkpoint, keep_last=KEEP, keep_best=0),
    )


def _start(run: Run, source: LogRecord | None) -> StartFrom:
    if source is None:
        return StartFrom()
    directory = source.commit().directory
    local = run.storage.local_path(directory)
    if local is None:
        return StartFrom(kind="checkpoint", ref=child(run.storage.uri, directory))
    return StartFrom(kind="checkpoint", ref=str(local.absolute()))


def _train(copy: Run, last: int) -> None:
    """Until step `last` is done; then the copy is ended."""
    row = watch(copy, last)
    if row is None:
        actions.cancel(copy)
        note(f"cancelled; to remove what it left: qvl-orchestrate rm {copy.run_id}")
        raise click.Abort
    if row["step"] < last:
        raise UserError(
            f"the copy {copy.run_id} is {row['state']} at step {row['step']}: {row['message']}",
            hint=f"`qvl-orchestrate events {copy.run_id}` says more",
        )
    if row["state"] != State.SUCCEEDED.value and actions.cancel(copy):
        watch(copy)


def _compare(
    run: Run, record: Record, copy: Run, source: LogRecord | None, window: replay.Window
) -> Iterator[proof.Check]:
    again = gather(copy)
    tolerance = max(record.tolerance, again.tolerance)
    stored = None if source is None else kept_manifest(run.storage, source)
    for evidence in again.evidence[:1]:
        yield from proof.resume_checks(replace(evidence, manifest=stored), tolerance)
    yield from replay.step_checks(record.curves, again.curves, window, tolerance)
    yield from _checkpoints(run, copy, window, tolerance)


def _checkpoints(
    run: Run, copy: Run, window: replay.Window, tolerance: float
) -> Iterator[proof.Check]:
    """Those that both have of the window's steps."""
    ours, theirs = (
        {r.commit().step: r for r in checkpoints.live_commits(RunLog(of.storage).read())}
        for of in (run, copy)
    )
    for step in sorted(ours.keys() & theirs.keys()):
        if step not in window:
            continue
        before = kept_manifest(run.storage, ours[step])
        now = kept_manifest(copy.storage, theirs[step])
        if before is None or now is None:
            yield proof.Check(f"checkpoint of step {step}", "not compared", "it cannot be read")
        else:
            yield from replay.checkpoint_checks(before, now, tolerance)
