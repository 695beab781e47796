"""Reading what is known of a run: the facts that `domain.decide` needs."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.backends.base import Observation
from orchestrator.clock import parse_iso
from orchestrator.contract import layout
from orchestrator.contract.records import ClaimRecord, SubmissionRecord
from orchestrator.contract.summary import RunSummary
from orchestrator.controller.run import Run
from orchestrator.domain.batch import at_floor
from orchestrator.domain.facts import AttemptFacts, BackendPhase, Policy, RunFacts
from orchestrator.domain.verdict import attempt_verdict
from orchestrator.errors import Unreachable
from orchestrator.helper.history import read_summary
from orchestrator.storage import attempts
from orchestrator.storage.runlog import LogView, RunLog

RECENT = 12
"""Attempts that are looked at; the budgets reach no further back."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Facts, and what they were read from."""

    facts: RunFacts
    newest: SubmissionRecord | None
    backend_id: str | None
    summary: RunSummary | None
    view: LogView


def observe(run: Run) -> Seen:
    """Everything about a run, read now. Raises StorageError if the run directory is away."""
    submissions = attempts.read_submissions(run.storage)
    newest = submissions[-1] if submissions else None
    backend_id = attempts.read_backend_id(run.storage, newest.number) if newest else None
    phase = backend_phase(run, backend_id)
    view = RunLog(run.storage, run.clock).read()
    summary = read_summary(run.storage)
    facts = RunFacts(
        attempts=_attempts(run, view, phase, submissions),
        newest_submission=newest.number if newest else 0,
        submitted_at=parse_iso(newest.time) if newest and newest.time else None,
        backend=phase,
        requeues_itself=run.backend.capabilities.requeues_itself,
        done=view.is_done(),
        tombstone=attempts.has_tombstone(run.storage),
        policy=policy(run, newest.spec.resolved if newest else layout.RESOLVED),
        save_seconds=summary.save_seconds if summary else None,
    )
    return Seen(facts, newest, backend_id, summary, view)


def backend_phase(run: Run, backend_id: str | None) -> BackendPhase:
    """What the backend says of the job; `absent` if it never got one, `unknown` if silent."""
    if backend_id is None:
        return "absent"
    try:
        seen: Observation = run.backend.observe([backend_id])[backend_id]
    except Unreachable:
        return "unknown"
    return seen.phase


def policy(run: Run, resolved: str) -> Policy:
    """The budgets that the resolved job and the backend set."""
    job = run.job(resolved)
    return Policy(
        max_failures_without_progress=job.preemption.max_failures_without_progress,
        backoff_base_s=run.backend.capabilities.backoff_base_s,
        grace_s=job.preemption.grace_s,
        every_steps=job.checkpoint.every_steps,
    )


def _attempts(
    run: Run, view: LogView, phase: BackendPhase, submissions: list[SubmissionRecord]
) -> tuple[AttemptFacts, ...]:
    """The recent attempts since a person last said `resume`: older budgets are forgiven."""
    since = max((s.number for s in submissions if s.reason == "resume"), default=0)
    claims = attempts.read_claims(run.storage)
    chosen = [c for c in claims if c.submission >= since][-RECENT:]
    newest = claims[-1].attempt if claims else 0
    newest_submission = submissions[-1].number if submissions else 0
    found = []
    for claim in chosen:
        current = claim.attempt == newest and claim.submission == newest_submission
        living = current and phase in ("pending", "running", "unknown")
        found.append(_attempt(run, view, claim, living=living))
    return tuple(found)


def _attempt(run: Run, view: LogView, claim: ClaimRecord, *, living: bool) -> AttemptFacts:
    number = claim.attempt
    stops = attempts.read_stops(run.storage, number)
    commits = sum(1 for r in view.records if r.kind == "commit" and r.attempt == number)
    shrink = not at_floor(claim.plan)
    if living:
        return AttemptFacts(
            number=number,
            submission=claim.submission,
            commits=commits,
            oom_can_shrink=shrink,
            stopping=bool(stops),
        )
    verdicts = attempts.read_verdicts(run.storage, number)
    verdict = attempt_verdict(
        number, view.records, attempts.read_slots(run.storage, number), stops, verdicts
    )
    ended = max((parse_iso(v.time) for v in verdicts if v.time), default=parse_iso(claim.time))
    return AttemptFacts(
        number=number,
        submission=claim.submission,
        verdict=verdict,
        ended_at=ended,
        commits=commits,
        oom_can_shrink=shrink,
    )
