"""Reading what is known of a run: the facts that `domain.decide` needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

from orchestrator.backends.base import JobRef, Observation
from orchestrator.clock import parse_iso
from orchestrator.contract import layout
from orchestrator.contract.codes import PEERS, ExitCode
from orchestrator.contract.records import ArrivalRecord, ClaimRecord, SubmissionRecord
from orchestrator.contract.summary import RunSummary
from orchestrator.controller.run import Run
from orchestrator.domain.facts import BackendPhase, Policy, RunFacts
from orchestrator.errors import CheckpointError, RecordDamaged, Unreachable
from orchestrator.helper.gather import last_words
from orchestrator.run_directory import attempts, evidence, log_integrity
from orchestrator.run_directory.runlog import LogView

LOST_AFTER = 5.0
"""Silence of a forgotten job, in units of `node_lost_s`, after which it counts as gone. Should
it live after all, the next attempt fences it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Facts, and what they were read from."""

    facts: RunFacts
    newest: SubmissionRecord | None
    job: JobRef | None
    """The newest submission's; None if its backend never took it."""
    summary: RunSummary | None
    view: LogView
    damaged: tuple[str, ...] = ()
    """Records that are passed over, since they are not what was written."""
    there: bool = False
    """The backend does not say yet that the job is gone, whatever the run directory shows: it may
    still hold, or get, what its run asked for."""
    lingers: bool = False
    """The job is gone, but something else in it holds what it was given."""
    suspended: bool = False
    """The newest submission's job was stopped by a person who told it to wait."""
    log_fault: str = ""
    """What the run's log lacks; asked only where the next start or its end depends on it."""
    held: bool = False
    """The job is gone, and would start once more if somebody released it."""

    @property
    def backend_id(self) -> str | None:
        """How the backend calls that job."""
        return self.job.id if self.job else None


def observe(run: Run) -> Seen:
    """Everything about a run, read now. Raises StorageError if the run directory is away."""
    stored = attempts.all_submissions(run.storage)
    submissions, number = stored.records, attempts.newest_number(stored)
    newest = submissions[-1] if submissions else None
    every_claim = attempts.all_claims(run.storage)
    job = _handed_over(run, number, every_claim.records)
    view = run.log.read()
    summary = attempts.read_summary(run.storage)
    budgets, damage = _policy_or_damage(run, stored, newest)
    claims = evidence.claims_since_resume(every_claim.records, submissions)
    seen = observation(run, job)
    phase = _settled_phase(run, seen, newest, claims, summary)
    ending = seen.ending
    if (
        phase == "gone"
        and seen.forgotten
        and claims
        and evidence.was_cancelled(run.storage, claims)
    ):
        ending = "cancelled"
    log_fault = ""
    if phase in ("gone", "absent") and not view.is_done():
        log_fault = log_integrity.fault(run.storage, view, every_claim)
        damage = log_fault or damage
    failed, taken = evidence.unclaimed(submissions, claims, ending)
    came = _arrivals(run, newest, claims, seen)
    words = last_words(came) if phase == "gone" else None
    facts = RunFacts(
        attempts=evidence.attempt_facts(
            run.storage,
            view,
            claims[-evidence.recent(budgets) :],
            submissions,
            evidence.NewestJob(
                living=phase in ("pending", "running", "unknown"),
                ending=ending,
                restarts=seen.restarts,
                suspended=seen.suspended,
            ),
        ),
        newest_submission=number,
        unclaimed=failed,
        taken_unclaimed=taken,
        last_words=words.words if words else "",
        peers_missing=words is not None and words.reason == PEERS,
        no_room=seen.no_room,
        given_back=seen.given_back,
        backend_since=seen.since,
        submitted_at=parse_iso(newest.time) if newest and newest.time else None,
        backend=phase,
        ending=ending,
        stuck=seen.stuck,
        detail=seen.detail or _waits_for(newest, came, phase),
        requeues_itself=run.backend.capabilities.requeues_itself,
        done=view.is_done(),
        tombstone=attempts.has_tombstone(run.storage),
        policy=budgets,
        save_seconds=summary.save_seconds if summary else None,
        damage=damage,
    )
    if facts.last and facts.last.verdict and facts.last.verdict.code == ExitCode.REFUSED:
        other = evidence.other_checkpoint(run.storage, view, facts.last.number, newest)
        facts = replace(facts, other_checkpoint=other)
    damaged = (*stored.damaged, *every_claim.damaged)
    return Seen(
        facts,
        newest,
        job,
        summary,
        view,
        damaged,
        there=seen.phase in ("pending", "running", "unknown") and not seen.forgotten,
        lingers=seen.lingers,
        suspended=seen.suspended,
        log_fault=log_fault,
        held=seen.held,
    )


def _policy_or_damage(
    run: Run, stored: attempts.Found[SubmissionRecord], newest: SubmissionRecord | None
) -> tuple[Policy, str]:
    """The run's budgets, and what of it is damaged so that nothing may be started any more."""
    number, damage = attempts.newest_number(stored), ""
    if number > (newest.number if newest else 0):
        damage = (
            f"{layout.submission(number)} is damaged: what it asked for cannot be read; "
            "restore it from a backup"
        )
        if newest is not None:
            damage += (
                ", or say with `resume` what the run shall do (without options it goes on as "
                f"submission {newest.number} said)"
            )
    try:
        return policy(run, newest.spec.resolved if newest else layout.RESOLVED), damage
    except RecordDamaged as fault:
        return Policy(), damage or str(fault)


def _handed_over(run: Run, number: int, claims: Sequence[ClaimRecord]) -> JobRef | None:
    """The newest submission's job, as it was handed over; its claims know it too."""
    key = f"{run.run_id}-{number}"
    try:
        note = attempts.read_submission_id(run.storage, number)
    except RecordDamaged:
        mine = (c for c in claims if c.submission == number)
        return next((JobRef(c.backend_id, key) for c in mine), None)
    return None if note is None else JobRef(note.backend_id, key, note.uid)


def observation(run: Run, job: JobRef | None) -> Observation:
    """What the backend says of the job; `absent` if it never got one, `unknown` if silent."""
    if job is None:
        return Observation(phase="absent")
    try:
        return run.backend.observe([job])[job]
    except Unreachable as fault:
        return Observation(phase="unknown", detail=fault.message)


def backend_phase(run: Run, job: JobRef | None) -> BackendPhase:
    """The phase of `observation`."""
    return observation(run, job).phase


def _arrivals(
    run: Run, newest: SubmissionRecord | None, claims: Sequence[ClaimRecord], seen: Observation
) -> list[ArrivalRecord]:
    """The agents of the newest start, as long as they have claimed nothing."""
    started = newest is not None and seen.phase in ("running", "gone")
    if newest is None or not started or any(c.submission == newest.number for c in claims):
        return []
    try:
        return attempts.read_arrivals(run.storage, newest.number, seen.restarts)
    except CheckpointError:
        return []


def _waits_for(
    newest: SubmissionRecord | None, came: Sequence[ArrivalRecord], phase: BackendPhase
) -> str:
    """Words for the nodes that have not come yet, where an agent has."""
    nodes = newest.spec.nodes if newest is not None else 1
    here = {a.token if a.slot is None else str(a.slot) for a in came if not a.reason}
    if phase != "running" or not here or len(here) >= nodes:
        return ""
    words = f"waits for {nodes - len(here)} of {nodes} nodes"
    if any(a.slot is None for a in came):
        return words
    return f"{words}: node {', '.join(str(k) for k in range(nodes) if str(k) not in here)}"


def _settled_phase(
    run: Run,
    seen: Observation,
    newest: SubmissionRecord | None,
    claims: Sequence[ClaimRecord],
    summary: RunSummary | None,
) -> BackendPhase:
    """A job that its backend answers for, but has forgotten, is `unknown` until the run
    directory itself shows that it has ended: by verdicts, or by silence. A job of one attempt
    that still waits once that has ended (for a replacement that would stand aside) is gone.
    """
    once = run.backend.capabilities.starts_once and seen.phase == "pending" and newest is not None
    if (
        once
        and not seen.suspended
        and any(
            attempts.has_ended(run.storage, c.attempt)
            for c in claims
            if newest is not None and c.submission == newest.number
        )
    ):
        return "gone"
    claimed = newest is not None and any(c.submission == newest.number for c in claims)
    if seen.given_back and claimed:
        # It found room, and was started, while it was being taken back.
        return "gone"
    if seen.phase != "unknown" or not seen.forgotten or newest is None:
        return seen.phase
    mine = [c for c in claims if c.submission == newest.number]
    if mine and attempts.has_ended(run.storage, mine[-1].attempt):
        return "gone"
    times = [newest.time, *(c.time for c in mine), summary.time if summary else ""]
    last = max((parse_iso(t) for t in times if t), default=0.0)
    patience = newest.spec.node_lost_s * LOST_AFTER
    return "gone" if run.clock.now() - last > patience else "unknown"


def policy(run: Run, resolved: str) -> Policy:
    """The budgets that the resolved job and the backend set."""
    budgets = evidence.policy(run.job(resolved), run.backend.capabilities.backoff_base_s)
    return replace(budgets, jitter=crc32(run.run_id.encode()) / 2**32)
