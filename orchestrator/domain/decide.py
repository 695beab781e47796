"""What to do with a run next. One pure function; the controller carries it out.

done                                   -> Finish
cancelled, the job still there         -> Stop
cancelled, the job gone                -> Cancel
the job waits for what will not come   -> Hold (and the controller takes it back)
the job holds a part of what it needs,
    and there is no room for the rest  -> GiveBack, unless an attempt was claimed
the job taken back for want of room    -> Requeue after a back-off, without limit
the job pending, running or unknown    -> Wait
the job gone, cancelled by other hands -> Cancel (`scancel` is as good as ours)
the job gone, taken back by us         -> Hold
the job gone at its time limit         -> Requeue (three without a commit: Hold)
the run directory damaged              -> Hold (repair)
the job gone, last attempt taken away
    (node failure, preempted for good) -> Requeue (free; ten without a commit: Hold)
the job gone, last attempt ended with
    75, 76                             -> Requeue (free; ten without a commit: Hold)
    79                                 -> Requeue (somebody else's start was stale)
    74, the storage takes no writes    -> Requeue (free) once it takes some again
    77, plan can shrink                -> Requeue (free)
    78 contract, checkpoint            -> Hold, naming the flags of the least destructive cure
    78 damaged, version                -> Hold
    78 otherwise                       -> Fail
    a crash, killed for memory         -> Requeue after a back-off; the same error three times
                                          in a row: Hold; other failures past the budget: Fail
the job gone before its agent claimed,
    refused (78)                       -> Hold
    taken away by the scheduler        -> Requeue after a back-off, without limit
    not all of its nodes came          -> Requeue after a back-off (three in a row: Hold)
    otherwise                          -> Requeue after a back-off (ten in a row: Hold)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from orchestrator.contract.codes import ExitCode
from orchestrator.domain.facts import NO_FAULT, AttemptFacts, Policy, RunFacts
from orchestrator.domain.resume import ONLY_THERE
from orchestrator.domain.signature import signature
from orchestrator.domain.verdict import STORAGE, Verdict

FREE = (ExitCode.PREEMPTED, ExitCode.PREEMPTED_NOTHING_NEW, ExitCode.NOT_OWNER)
STORAGE_WAIT_S, STORAGE_CAP_S = 10.0, 300.0
"""Between two tries of a storage that takes no writes: at first, and at most."""
DAMAGE = ("damaged", "log-damaged")
ROOM_CAP_S = 300.0
"""Longest back-off of a job that waits for room."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is done: record it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancelled by a tombstone while the job is still there: cancel the job."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Take the job back and free what it holds; later the same submission is handed over again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancelled, and nothing is left of it: record it."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Submit the next attempt, not before `not_before` (seconds since the epoch)."""

    reason: str
    not_before: float = 0.0
    storage: str = ""
    """What the storage said when it took no writes: submit only once it takes them again."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A person must look; `next_flags` is what `command` would need, word by word."""

    reason: str
    message: str
    next_flags: tuple[str, ...] = ()
    command: str = "resume"


@dataclass(frozen=True, slots=True)
class Fail:
    """The end without success."""

    reason: str
    message: str


Decision = Wait | Finish | Stop | GiveBack | Cancel | Requeue | Hold | Fail


def decide(facts: RunFacts) -> Decision:
    """The one decision (see the table above)."""
    if facts.done:
        return Finish()
    here = facts.backend in ("pending", "running", "unknown")
    if facts.tombstone:
        return Stop() if here else Cancel()
    if here:
        return _while_here(facts)
    if facts.damage:
        return Hold("damaged", facts.damage, command="repair")
    if facts.backend == "absent" and facts.given_back:
        since = facts.backend_since or 0.0
        return Requeue("no room", since + room_backoff_s(facts.policy, facts.given_back))
    if facts.backend == "absent":
        return Requeue("never submitted")
    if facts.ending == "cancelled":
        return Cancel()
    if facts.ending == "unstartable":
        return Hold("unstartable", facts.detail)
    return _after_end(facts)


def _while_here(facts: RunFacts) -> Decision:
    if facts.stuck:
        return Hold(facts.stuck, facts.detail)
    if facts.no_room and not facts.claimed:
        return GiveBack(facts.detail)
    return Wait(facts.detail or f"the job is {facts.backend}")


def starts_again_now(facts: RunFacts) -> bool:
    """Whether a job that ends with these facts may be started again at once, without a word
    of the controller's: where `decide` would requeue it without a back-off.
    """
    decision = decide(facts)
    return isinstance(decision, Requeue) and decision.not_before == 0.0 and not decision.storage


def _after_end(facts: RunFacts) -> Decision:
    last = facts.last
    if last is None or last.submission < facts.newest_submission or last.verdict is None:
        return _ended_unclaimed(facts)
    verdict = last.verdict
    if last.lost:
        return _held_without_commit(facts) or Requeue(f"taken away ({last.ending or 'restarted'})")
    if last.ending == "timeout":
        return _after_time_limit(facts)
    if verdict.code == ExitCode.STORAGE:
        return _after_storage(facts, verdict)
    if verdict.code in FREE:
        return _after_preemption(facts, verdict)
    if verdict.code == ExitCode.OUT_OF_MEMORY and last.oom_can_shrink:
        return Requeue("out of memory: a smaller micro-batch")
    if verdict.code == ExitCode.REFUSED:
        return _refused(facts, verdict)
    return _after_failure(facts, verdict)


def _ended_unclaimed(facts: RunFacts) -> Decision:
    """The newest submission ended before its agent wrote anything: killed while starting."""
    if facts.ending == "refused":
        return Hold("refused", facts.detail or "refused before its agent started (78)")
    since = facts.submitted_at or 0.0
    if facts.ending == "storage":
        words = "the run storage took no writes when its agent started"
        return Requeue(STORAGE, (facts.submitted_at or 0.0) + STORAGE_WAIT_S, words)
    if facts.ending in NO_FAULT:
        pause = room_backoff_s(facts.policy, facts.taken_unclaimed)
        return Requeue(f"taken away ({facts.ending})", since + pause)
    limit = facts.policy.max_attempts_without_commit
    if facts.ending == "start-error" or facts.peers_missing:
        limit = facts.policy.max_failures_without_progress
    if facts.unclaimed >= limit:
        return Hold(
            "never-starts",
            f"{facts.unclaimed} submissions in a row ended before their agent claimed an attempt; "
            + (facts.words or "see the job's own output"),
        )
    why = "not all nodes came" if facts.peers_missing else "ended before it started"
    return _held_without_commit(facts) or Requeue(why, since + facts.policy.backoff_base_s)


def _after_preemption(facts: RunFacts, verdict: Verdict) -> Decision:
    assert facts.last is not None
    return _held_without_commit(facts) or Requeue(verdict.reason, storage=facts.last.unsaved)


def _after_storage(facts: RunFacts, verdict: Verdict) -> Decision:
    """Without limit, because it is the storage that is waited for; an attempt that fails again
    although the storage took a try is followed by the next one ever later.
    """
    assert facts.last is not None
    again = 0
    for attempt in reversed(facts.attempts):
        if attempt.commits or attempt.verdict is None or attempt.verdict.code != ExitCode.STORAGE:
            break
        again += 1
    wait = 0.0 if again < 2 else min(STORAGE_CAP_S, STORAGE_WAIT_S * 2.0 ** (again - 2))
    return Requeue(STORAGE, (facts.last.ended_at or 0.0) + wait, verdict.message or STORAGE)


def _after_time_limit(facts: RunFacts) -> Decision:
    """The limit came before a save was through: more time, or a shorter interval, is needed."""
    limit = facts.policy.max_timeouts_without_commit
    recent = facts.attempts[-limit:]
    if len(recent) == limit and all(a.ending == "timeout" and not a.commits for a in recent):
        return Hold(
            "time-limit",
            f"{limit} attempts in a row reached the job's time limit without a new checkpoint; "
            "save more often (checkpoint.every_steps) or raise resources.time_limit",
        )
    return _held_without_commit(facts) or Requeue("time limit")


def _held_without_commit(facts: RunFacts) -> Hold | None:
    limit = facts.policy.max_attempts_without_commit
    # What could not be saved because of the storage says nothing of this run.
    recent = [a for a in facts.attempts if not (a.suspended or a.unsaved)][-limit:]
    if len(recent) < limit or any(a.commits for a in recent):
        return None
    policy = facts.policy
    interval = "by time" if policy.every_steps is None else f"{policy.every_steps} steps"
    saved = "unknown" if facts.save_seconds is None else f"{facts.save_seconds:.1f} s"
    return Hold(
        "no-progress",
        f"{limit} attempts in a row ended without a new checkpoint (a save takes {saved}, "
        f"grace {policy.grace_s:.0f} s, interval {interval})",
    )


def _refused(facts: RunFacts, verdict: Verdict) -> Decision:
    """Held with the cure that gives up least: a named change, the old conditions, an older
    checkpoint, and only then the weights alone. Nothing proposes to begin from scratch.
    """
    if verdict.reason in DAMAGE:
        return Hold(verdict.reason, verdict.message, command="repair")
    if verdict.reason == "version":
        return Hold(verdict.reason, verdict.message)
    if verdict.reason not in ("contract", "checkpoint"):
        return Fail(verdict.reason, verdict.message)
    flags = tuple(dict.fromkeys(re.findall(r"--allow-change ([\w.*-]+)", verdict.message)))
    if verdict.reason == "contract" and flags:
        cure = tuple(word for flag in flags for word in ("--allow-change", flag))
    elif verdict.reason == "contract" and ONLY_THERE in verdict.message:
        cure = ()
    elif facts.other_checkpoint:
        cure = ("--from", facts.other_checkpoint)
    else:
        cure = ("--restart-from", "weights")
    return Hold(verdict.reason, verdict.message, cure)


def _after_failure(facts: RunFacts, verdict: Verdict) -> Decision:
    failures = failures_without_progress(facts.attempts)
    if facts.ending == "oom":
        verdict = Verdict(verdict.code, "memory", facts.detail or verdict.message)
    repeated = same_error_in_a_row(facts.attempts)
    if repeated >= facts.policy.max_same_error:
        return Hold(
            "same-error",
            f"the same error {repeated} times in a row without a new checkpoint: "
            + (verdict.message or verdict.reason),
        )
    if failures >= facts.policy.max_failures_without_progress:
        return Fail(
            verdict.reason,
            f"{failures} failures without a new checkpoint; the last: {verdict.message}",
        )
    last = facts.attempts[-1]
    return Requeue(
        f"failed ({verdict.reason})",
        (last.ended_at or 0.0) + backoff_s(facts.policy, failures),
    )


def failures_without_progress(attempts: tuple[AttemptFacts, ...]) -> int:
    """Failing attempts since the last one that committed anything."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.commits:
            break
        count += _is_failure(attempt)
    return count


def same_error_in_a_row(attempts: tuple[AttemptFacts, ...]) -> int:
    """Newest failing attempts since the last commit that ended with the same error; what the
    scheduler took away in between counts neither way.
    """
    failed: list[str] = []
    for attempt in reversed(attempts):
        if attempt.commits:
            break
        if _is_failure(attempt):
            failed.append(signature(attempt))
    return next((n for n, s in enumerate(failed) if s != failed[0]), len(failed))


def _is_failure(attempt: AttemptFacts) -> bool:
    verdict = attempt.verdict
    if (
        verdict is None
        or verdict.code in (*FREE, ExitCode.STORAGE)
        or attempt.lost
        or attempt.ending == "timeout"
    ):
        return False
    return not (verdict.code == ExitCode.OUT_OF_MEMORY and attempt.oom_can_shrink)


def room_backoff_s(policy: Policy, times: int) -> float:
    """Seconds to wait for room after a job was taken back so often in a row."""
    return backoff_s(replace(policy, backoff_cap_s=ROOM_CAP_S), times)


def backoff_s(policy: Policy, failures: int) -> float:
    """Seconds to wait before the next try: base, twice, four times, ... up to the cap, and
    up to a quarter more by the run's jitter.
    """
    plain = min(policy.backoff_cap_s, policy.backoff_base_s * 2 ** max(0, failures - 1))
    return float(plain * (1.0 + 0.25 * policy.jitter))
