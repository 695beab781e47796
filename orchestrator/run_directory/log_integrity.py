"""Whether a run's log is as long as its other records prove it to have been.

Nothing is deleted and nothing is started on the word of a log that fails this.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.contract import layout
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.records import ClaimRecord
from orchestrator.contract.summary import RunSummary
from orchestrator.domain.rebuild import rebuilt_up_to
from orchestrator.errors import LogDamaged, RecordDamaged
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.storage.protocol import NotFound, Storage


def require_whole(storage: Storage, view: LogView) -> None:
    """Before anything is deleted or started on the word of `view`. Raises LogDamaged."""
    if found := fault(storage, view):
        raise LogDamaged(
            f"{found}; nothing is deleted and nothing started",
            hint="`qvl-orchestrate repair RUN` shows what can be rebuilt from the checkpoints",
        )


def fault(
    storage: Storage, view: LogView, claims: attempts.Found[ClaimRecord] | None = None
) -> str:
    """What the log lacks, in words; empty if it is whole.

    A newest claim without its fence, and a manifest without its record, are left by any crash.
    """
    listed = {e.path for e in storage.list(layout.LOG)}
    for seq in range(1, view.last_seq + 1):
        if layout.log_record(seq) not in listed:
            return f"record {seq} of the run's log has gone"
    claims = claims or attempts.all_claims(storage)
    if not _lacking(storage, view, claims):
        return ""
    # The witnesses may be younger than the view.
    return _lacking(storage, RunLog(storage).read(), claims)


def _lacking(storage: Storage, view: LogView, claims: attempts.Found[ClaimRecord]) -> str:
    if view.unreadable:
        return f"record {view.unreadable[-1]} of the run's log cannot be read"
    return next(_faults(storage, view, claims), "")


def _faults(storage: Storage, view: LogView, claims: attempts.Found[ClaimRecord]) -> Iterator[str]:
    since = rebuilt_up_to(view.records)
    fenced = {r.attempt for r in view.records if r.kind == "fence"}
    numbers = sorted([c.attempt for c in claims.records] + claims.damaged_numbers())
    for claim in claims.records:
        if claim.attempt > since and claim.log_seq > view.last_seq:
            yield (
                f"the run's log has {view.last_seq} records; "
                f"attempt {claim.attempt} found {claim.log_seq} when it began"
            )
    for number in numbers:
        # An agent takes its slot after its fence.
        if number > since and number not in fenced and attempts.read_slots(storage, number):
            yield f"the run's log lacks the fence of attempt {number}"
    newest = max(numbers, default=0)
    if newest > since:
        yield from _of_attempt(storage, view, newest)
    summary = attempts.read_summary(storage)
    if summary is not None and summary.attempt > since:
        yield from _of_summary(view, summary, newest)
    if not view.is_done() and _exists(storage, layout.DONE):
        yield f"the run's log lacks the end that {layout.DONE} tells of"


def _of_attempt(storage: Storage, view: LogView, number: int) -> Iterator[str]:
    commits = [r for r in view.records if r.kind == "commit"]
    try:
        start = attempts.read_start(storage, number)
    except RecordDamaged:
        start = None
    if start is not None and start.commit_seq is not None and start.directory is not None:
        known = (r.commit().directory for r in commits)
        if not any(f"/{start.directory}".endswith(f"/{name}") for name in known):
            yield f"the run's log lacks the checkpoint that attempt {number} started from"
    verdicts = attempts.read_verdicts(storage, number)
    committed = any(v.code == ExitCode.PREEMPTED for v in verdicts)
    if committed and not any(r.attempt == number for r in commits):
        yield f"the run's log lacks what attempt {number} committed"


def _of_summary(view: LogView, summary: RunSummary, newest: int) -> Iterator[str]:
    if summary.attempt > newest:
        yield f"the claim of attempt {summary.attempt} has gone"
    steps = {r.commit().step for r in view.records if r.kind == "commit"}
    if summary.checkpoint_step is not None and summary.checkpoint_step not in steps:
        yield f"the run's log lacks the checkpoint of step {summary.checkpoint_step}"


def _exists(storage: Storage, path: str) -> bool:
    try:
        storage.get(path)
    except NotFound:
        return False
    return True
