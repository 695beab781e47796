"""Reading from the run directory how its attempts ended: the facts that `decide` looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.clock import parse_iso
from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.contract.records import (
    ClaimRecord,
    Ending,
    SlotRecord,
    SubmissionRecord,
    VerdictRecord,
)
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.domain.batch import at_floor
from orchestrator.domain.decide import starts_again_now
from orchestrator.domain.facts import NO_FAULT, AttemptFacts, Policy, RunFacts, taken_away
from orchestrator.domain.verdict import CANCELLED, Verdict, attempt_verdict
from orchestrator.run_directory import attempts
from orchestrator.run_directory.checkpoints import live_commits
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.storage.protocol import Storage


def policy(job: ResolvedJob, backoff_base_s: float) -> Policy:
    """The budgets that the resolved job and the backend set."""
    return Policy(
        max_failures_without_progress=job.preemption.max_failures_without_progress,
        backoff_base_s=backoff_base_s,
        grace_s=job.preemption.grace_s,
        every_steps=job.checkpoint.every_steps,
    )


def claims_since_resume(
    claims: Sequence[ClaimRecord], submissions: Sequence[SubmissionRecord]
) -> list[ClaimRecord]:
    """A person who says `resume` forgives what was spent of the budgets before."""
    since = _resumed_at(submissions)
    return [c for c in claims if c.submission >= since]


def _resumed_at(submissions: Sequence[SubmissionRecord]) -> int:
    return max((s.number for s in submissions if s.reason == "resume"), default=0)


def unclaimed(
    submissions: Sequence[SubmissionRecord], claims: Sequence[ClaimRecord], ending: Ending
) -> tuple[int, int]:
    """Newest submissions in a row without an attempt, since a person last said `resume`: those
    that failed to start, and those that the scheduler took away (not those whose storage took no
    claim). `ending`: of the newest one.
    """
    claimed = max((c.submission for c in claims), default=0)
    since = max(claimed + 1, _resumed_at(submissions))
    ended = {s.number - 1: s.ended for s in submissions[1:]}
    mine = [ended.get(s.number, ending) for s in submissions if s.number >= since]
    taken = sum(1 for e in mine if e in NO_FAULT)
    return len(mine) - taken - mine.count("storage"), taken


def recent(budgets: Policy) -> int:
    """Attempts to look at: no budget reaches further back.

    Of attempts without a commit, at most those before the first `max_attempts_without_commit`
    can be preemptions (the next one holds the run); all later ones spend the other budget.
    """
    return budgets.max_attempts_without_commit + budgets.max_failures_without_progress


def was_cancelled(storage: Storage, claims: Sequence[ClaimRecord]) -> bool:
    """True if the newest attempt learnt from its scheduler that its job was cancelled."""
    verdicts = attempts.read_verdicts(storage, claims[-1].attempt)
    return any(v.cause == CANCELLED for v in verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestJob:
    """What its scheduler says of the newest submission's job."""

    living: bool = False
    """It may be at work."""
    ending: Ending = ""
    """How it ended, if not."""
    restarts: int = 0
    """How often it was started again, as far as the scheduler says."""
    suspended: bool = False
    """A person made it wait."""


def attempt_facts(
    storage: Storage,
    view: LogView,
    claims: Sequence[ClaimRecord],
    submissions: Sequence[SubmissionRecord],
    job: NewestJob,
) -> tuple[AttemptFacts, ...]:
    """Facts of these attempts, oldest first."""
    newest = submissions[-1].number if submissions else 0
    endings = {s.number - 1: s.ended for s in submissions} | {newest: job.ending}
    waited = {s.number - 1 for s in submissions if s.suspended} | (
        {newest} if job.suspended else set()
    )
    found: list[AttemptFacts] = []
    for index, claim in enumerate(claims):
        last = index == len(claims) - 1
        if last and job.living and claim.submission == newest:
            found.append(_living(storage, view, claim))
            continue
        again = not last and claims[index + 1].submission == claim.submission
        again = again or (claim.submission == newest and claim.restart_count < job.restarts)
        before = found[-1] if found and found[-1].submission == claim.submission else None
        how: Ending = "" if again else endings.get(claim.submission, "")
        ended = _ended(storage, view, claim, how, before, again=again)
        found.append(replace(ended, suspended=claim.submission in waited))
    return tuple(found)


def other_checkpoint(
    storage: Storage, view: LogView, attempt: int, newest: SubmissionRecord | None
) -> str:
    """The newest kept checkpoint that `attempt`, of submission `newest`, did not start from;
    empty if there is none. By its short name, where no other checkpoint has the same one.
    """
    live = live_commits(view)
    start = attempts.read_start(storage, attempt)
    asked = newest.start.ref if newest is not None else None
    tried = {r.seq for r in live if start is not None and r.seq == start.commit_seq}
    tried |= {r.seq for r in live if start is None and r.commit().directory == asked}
    for record in reversed([r for r in live if r.seq not in tried]):
        directory = record.commit().directory
        name = directory.rpartition("/")[2]
        same = [r for r in live if r.commit().directory.endswith(f"/{name}")]
        return name if len(same) == 1 else directory
    return ""


def starts_again(storage: Storage, log: RunLog, job: ResolvedJob, submission: int) -> bool:
    """Whether the job of this submission, which is ending, should be started again at once:
    asked on a node, where the scheduler can do it without any controller.
    """
    all_of_them = attempts.all_submissions(storage)
    submissions = all_of_them.records
    if not submissions or attempts.newest_number(all_of_them) != submission:
        return False
    view = log.read()
    budgets = policy(job, backoff_base_s=1.0)
    claims = claims_since_resume(attempts.read_claims(storage), submissions)[-recent(budgets) :]
    found = attempt_facts(storage, view, claims, submissions, NewestJob())
    facts = RunFacts(
        attempts=found,
        newest_submission=submission,
        backend="gone",
        done=view.is_done(),
        tombstone=attempts.has_tombstone(storage),
        policy=budgets,
    )
    return bool(found) and found[-1].submission == submission and starts_again_now(facts)


def _commits(view: LogView, attempt: int) -> int:
    return sum(1 for r in view.records if r.kind == "commit" and r.attempt == attempt)


def _living(storage: Storage, view: LogView, claim: ClaimRecord) -> AttemptFacts:
    return AttemptFacts(
        number=claim.attempt,
        submission=claim.submission,
        commits=_commits(view, claim.attempt),
        oom_can_shrink=not at_floor(claim.plan),
        stopping=bool(attempts.read_stops(storage, claim.attempt)),
    )


def _ended(
    storage: Storage,
    view: LogView,
    claim: ClaimRecord,
    ending: Ending,
    before: AttemptFacts | None,
    *,
    again: bool,
) -> AttemptFacts:
    number = claim.attempt
    slots = attempts.read_slots(storage, number)
    stops = attempts.read_stops(storage, number)
    verdicts = attempts.read_verdicts(storage, number)
    verdict = attempt_verdict(number, view.records, slots, stops, verdicts, ending)
    silent = not verdicts and not stops
    lost = taken_away(
        ending,
        silent=silent,
        started_again=again,
        after_lost=before is not None and before.lost,
    )
    ended = max((parse_iso(v.time) for v in verdicts if v.time), default=parse_iso(claim.time))
    return AttemptFacts(
        number=number,
        submission=claim.submission,
        verdict=verdict,
        ended_at=ended,
        commits=_commits(view, number),
        oom_can_shrink=not at_floor(claim.plan),
        ending=ending,
        lost=lost,
        silent=silent,
        started_at=parse_iso(claim.time) if claim.time else None,
        unsaved=_unsaved(verdict, verdicts, ending),
        failed_on=_failed_on(slots, verdicts),
    )


def _unsaved(verdict: Verdict, verdicts: Sequence[VerdictRecord], ending: Ending) -> str:
    """What the storage said to the attempt's last save, or that it did not even take a verdict."""
    words = next((v.unsaved for v in verdicts if v.unsaved), "")
    if words or verdict.code == ExitCode.STORAGE:
        return words or verdict.message
    return "it took no verdict" if not verdicts and ending == "stopped" else ""


def _failed_on(slots: Sequence[SlotRecord], verdicts: Sequence[VerdictRecord]) -> tuple[str, ...]:
    """Hosts whose slot crashed; without any, those that left no verdict."""
    codes = {v.slot: v.code for v in verdicts}
    crashed = {s.host for s in slots if s.host and codes.get(s.slot) == CRASH}
    silent = {s.host for s in slots if s.host and s.slot not in codes}
    return tuple(sorted(crashed or silent))
