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
    budgets = policy(run, newest.spec.resolved if newest else layout.RESOLVED)
    claims = _claims_since_resume(run, submissions)
    facts = RunFacts(
        attempts=_attempts(run, view, phase, claims[-_recent(budgets) :], newest),
        newest_submission=newest.number if newest else 0,
        unclaimed=_unclaimed(submissions, claims),
        submitted_at=parse_iso(newest.time) if newest and newest.time else None,
        backend=phase,
        requeues_itself=run.backend.capabilities.requeues_itself,
        done=view.is_done(),
        tombstone=attempts.has_tombstone(run.storage),
        policy=budgets,
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


def _claims_since_resume(run: Run, submissions: list[SubmissionRecord]) -> list[ClaimRecord]:
    """A person who says `resume` forgives what was spent of the budgets before."""
    since = _resumed_at(submissions)
    return [c for c in attempts.read_claims(run.storage) if c.submission >= since]


def _resumed_at(submissions: list[SubmissionRecord]) -> int:
    return max((s.number for s in submissions if s.reason == "resume"), default=0)


def _unclaimed(submissions: list[SubmissionRecord], claims: list[ClaimRecord]) -> int:
    """Newest submissions in a row without an attempt, since a person last said `resume`."""
    claimed = max((c.submission for c in claims), default=0)
    since = max(claimed + 1, _resumed_at(submissions))
    return sum(1 for s in submissions if s.number >= since)


def _recent(budgets: Policy) -> int:
    """Attempts to look at: no budget reaches further back.

    Of attempts without a commit, at most those before the first `max_attempts_without_commit`
    can be preemptions (the next one holds the run); all later ones spend the other budget.
    """
    return budgets.max_attempts_without_commit + budgets.max_failures_without_progress


def _attempts(
    run: Run,
    view: LogView,
    phase: BackendPhase,
    claims: list[ClaimRecord],
    newest: SubmissionRecord | None,
) -> tuple[AttemptFacts, ...]:
    found = []
    for claim in claims:
        current = claim is claims[-1] and newest is not None and claim.submission == newest.number
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
