"""Observe, decide, apply: one pass over one run. May be repeated or cut off anywhere."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.backends.base import JobRef, RemembersRuns, Submission
from orchestrator.clock import iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical
from orchestrator.contract.records import SubmissionId, SubmissionRecord, encode_record
from orchestrator.controller import leftovers, node_exclusion, status_rows
from orchestrator.controller.observe import Seen, backend_phase, observe
from orchestrator.controller.run import Run
from orchestrator.domain.decide import (
    STORAGE_CAP_S,
    STORAGE_WAIT_S,
    Cancel,
    Decision,
    Fail,
    Finish,
    GiveBack,
    Hold,
    Requeue,
    Stop,
    decide,
)
from orchestrator.domain.states import FINAL, State, state_of
from orchestrator.errors import Full, StorageError, UserError
from orchestrator.registry import faults
from orchestrator.run_directory import attempts
from orchestrator.run_directory.checkpoints import live_commits
from orchestrator.storage.protocol import NotFound
from orchestrator.storage.reserve import try_writing


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass found and did."""

    state: State
    decision: Decision
    row: dict[str, Any]
    over: bool = True
    """False while the job of a finished run may still hold something."""

    @property
    def settled(self) -> bool:
        """True if nothing will change without a person."""
        return self.over and (self.state in FINAL or self.state == State.HELD)


def reconcile(run: Run) -> Step:
    """One pass. The caller holds the lease, or accepts double work (never double attempts)."""
    seen = observe(run)
    with suppress(StorageError):
        # Only readers in a hurry miss it.
        run.log.keep_copy()
    node_exclusion.note_deaths(run, seen)
    if seen.lingers and seen.job is not None and isinstance(run.backend, RemembersRuns):
        run.backend.end(seen.job, seen.facts.ending, seen.facts.detail)
    decision = decide(seen.facts)
    full = waits = None
    _tell_damage(run, seen)
    if isinstance(decision, Requeue) and decision.not_before <= run.clock.now():
        waits = storage_waits(run, seen, decision)
        if waits is None:
            full = _submit_if_taken(run, seen, decision)
            seen = observe(run)
            decision = decide(seen.facts)
    elif isinstance(decision, GiveBack) and seen.job is not None:
        _give_back(run, seen.job, decision)
        seen = observe(run)
        decision = decide(seen.facts)
    elif isinstance(decision, Stop) and seen.job is not None:
        run.backend.cancel(seen.job)
    elif isinstance(decision, Hold) and seen.facts.stuck and seen.job is not None:
        _withdraw(run, seen.job, decision)
    state = state_of(seen.facts, decision, seen.summary.phase if seen.summary else None)
    row = status_rows.full_row(run, seen, decision, state)
    if full is not None:
        row = status_rows.waiting_row(row, full)
    if waits is not None:
        row = status_rows.storage_row(row, waits, run.clock.now())
    _record_end(run, seen, decision, state, row)
    # A finished run is looked after until its job is, so that nothing is left of that.
    remembers = isinstance(run.backend, RemembersRuns)
    over = not (remembers and isinstance(decision, Finish) and seen.there)
    kept = {**row, status_rows.RECORDED: state.value}
    run.registry.saw(run.run_id, kept, final=over and state in FINAL, at=run.clock.now())
    return Step(state, decision, row, over)


def _tell_damage(run: Run, seen: Seen) -> None:
    """Say once of each damaged record that it is passed over."""
    known = (run.registry.find(run.run_id).row or {}).get(status_rows.DAMAGED) or []
    if news := [path for path in seen.damaged if path not in known]:
        run.event("damaged_records", {"paths": news})


def storage_waits(run: Run, seen: Seen, decision: Requeue) -> status_rows.StorageWait | None:
    """None if the run may be submitted; else for what it waits: a storage that takes no writes is
    tried again, ever less often, for as long as that takes.
    """
    if not decision.storage:
        return None
    now = run.clock.now()
    before = status_rows.StorageWait.of(run.registry.find(run.run_id).row)
    if before is not None and now < before.next_at:
        return before
    live = live_commits(seen.view)
    try:
        try_writing(run.storage, live[-1].commit().size_bytes if live else 0)
    except StorageError as fault:
        tries = 1 if before is None else before.tries + 1
        pause = min(STORAGE_CAP_S, STORAGE_WAIT_S * 2.0 ** min(tries - 1, 16))
        return status_rows.StorageWait(fault.message, now + pause, tries)
    return None


def _withdraw(run: Run, job: JobRef, decision: Hold) -> None:
    """Free what a job holds that waits in vain."""
    if isinstance(run.backend, RemembersRuns):
        run.backend.withdraw(job, decision.message)


def _give_back(run: Run, job: JobRef, decision: GiveBack) -> None:
    """Free what a job holds in vain, until there may be room for all of it."""
    if isinstance(run.backend, RemembersRuns):
        run.backend.give_back(job, decision.reason)
        run.event("given_back", {"reason": decision.reason})


def still_running(run: Run, job: JobRef) -> bool:
    """The cheap question between passes."""
    return backend_phase(run, job) in ("pending", "running")


def _record_end(
    run: Run, seen: Seen, decision: Decision, state: State, row: dict[str, Any]
) -> None:
    """Say once in the run's events how it ended; forget its secrets when they are not needed."""
    before = status_rows.recorded(run.registry.find(run.run_id).row or {})
    if isinstance(decision, Finish):
        _restore_done(run, seen)
    if isinstance(decision, Cancel) and not seen.facts.tombstone:
        # Cancelled by the scheduler's own command: as final as a cancel of ours.
        note = {"time": iso(run.clock.now()), "by": "scheduler"}
        run.storage.create(layout.TOMBSTONE, canonical(note))
    if state in (State.SUCCEEDED, State.CANCELLED):
        forget_secrets(run, seen)
    if before == state:
        return
    if state in FINAL:
        leftovers.sweep(run, seen.view)
    if isinstance(decision, Hold | Fail):
        kind = "held" if isinstance(decision, Hold) else "failed"
        run.event(
            kind,
            {
                "reason": decision.reason,
                "message": decision.message,
                "next": row["next"],
            },
        )
    elif isinstance(decision, Finish):
        run.event("finished", {"step": row["step"], "attempts": row["attempt"]})
    elif isinstance(decision, Cancel):
        run.event("cancelled", {"step": row["step"]})


def _restore_done(run: Run, seen: Seen) -> None:
    """done.json is a copy of the done record, put right by whoever finds it different."""
    record = seen.view.done()
    if record is None:
        return
    try:
        there = run.storage.get(layout.DONE)
    except NotFound:
        there = b""
    if there != encode_record(record):
        run.storage.put(layout.DONE, encode_record(record))


def _submit_if_taken(run: Run, seen: Seen, decision: Requeue) -> str | None:
    """Submit; the backend's words if it takes no more jobs for now. The submission that stands
    in the run directory is handed over again by a later pass.
    """
    try:
        _submit_next(run, seen, decision)
    except Full as fault:
        return fault.message
    return None


def _submit_next(run: Run, seen: Seen, decision: Requeue) -> None:
    """Create the next submission (or take up one that never reached the backend)."""
    newest = seen.newest
    if newest is None:
        # Its controller is there before its first submission, which is on its way.
        return
    if seen.facts.backend == "absent":
        hand_over(run, newest)
        return
    claimed = any(c.submission == newest.number for c in attempts.read_claims(run.storage))
    following = replace(
        newest,
        number=newest.number + 1,
        reason="requeue",
        ended=seen.facts.ending,
        suspended=seen.suspended,
        time=iso(run.clock.now()),
        reset_batch_plan=newest.reset_batch_plan and not claimed,
        spec=replace(newest.spec, submission=newest.number + 1),
    )
    following = with_key(run, following)
    record = attempts.create_submission(run.storage, following) or following
    hand_over(run, record)
    data = {"submission": record.number, "reason": decision.reason, "ended": seen.facts.ending}
    if seen.facts.words:
        data["detail"] = seen.facts.words
    run.event("requeued", data)


def with_key(run: Run, record: SubmissionRecord) -> SubmissionRecord:
    """The record with its idempotency key, a token of this writer, and the claims before it."""
    claims = attempts.all_claims(run.storage)
    numbers = [c.attempt for c in claims.records] + claims.damaged_numbers()
    return replace(
        record,
        key=record.spec.key,
        token=secrets.token_hex(16),
        after_attempt=max(numbers, default=0),
    )


def hand_over(run: Run, record: SubmissionRecord, prepared: Submission | None = None) -> JobRef:
    """Give a stored submission to the backend; returns its job there. May be repeated.

    prepared: the submission as its backend has rendered it already
    """
    taken = _given_away_from_bad_nodes(run, record)
    if taken is None:
        prepared = prepared or run.backend.prepare(run.job(record.spec.resolved), record.spec)
        taken = _given(run, prepared, record.key)
    note = SubmissionId(
        number=record.number, backend_id=taken.id, uid=taken.uid, time=iso(run.clock.now())
    )
    attempts.record_backend_id(run.storage, note)
    return taken


def _given_away_from_bad_nodes(run: Run, record: SubmissionRecord) -> JobRef | None:
    """None where there are no such nodes, or too few others: a job on a doubtful node is better
    than none.
    """
    if not run.backend.capabilities.excludes_nodes:
        return None
    avoided = node_exclusion.excluded(run.registry, run.clock.now())
    if not avoided:
        return None
    job = node_exclusion.keeping_away(run.job(record.spec.resolved), avoided)
    try:
        taken = _given(run, run.backend.prepare(job, record.spec), record.key)
    except UserError:
        return None
    run.event("nodes_excluded", {"submission": record.number, "nodes": [n.node for n in avoided]})
    return taken


def _given(run: Run, prepared: Submission, key: str) -> JobRef:
    """The job as its backend took it; where that cannot write its files, QvlError says why."""
    try:
        return run.backend.submit(prepared, key)
    except OSError as fault:
        raise faults.of_files(run.registry.state_dir, fault) from fault


def secrets_path(state_dir: Path, run_id: str) -> Path:
    """Where the secret values of a run lie: 0600, outside the run directory."""
    return state_dir / "secrets" / f"{run_id}.json"


def forget_secrets(run: Run, seen: Seen) -> None:
    """Remove the secret values of a run, here and where its backend keeps them."""
    has_some = seen.newest is not None and seen.newest.spec.secrets_file is not None
    if has_some and seen.backend_id is not None and isinstance(run.backend, RemembersRuns):
        run.backend.forget_secrets(run.run_id, seen.backend_id)
    secrets_path(run.registry.state_dir, run.run_id).unlink(missing_ok=True)
