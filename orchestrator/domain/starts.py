"""Which start of which submission may become an attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.contract.records import ClaimRecord


@dataclass(frozen=True, slots=True)
class Starter:
    """Who asks: restart `restart_count` of backend job `backend_id` of submission `submission`."""

    submission: int
    backend_id: str
    restart_count: int
    after_attempt: int = 0
    """The newest attempt that was claimed when the submission was created."""


@dataclass(frozen=True, slots=True)
class MayClaim:
    """Create the claim of this attempt."""

    attempt: int


@dataclass(frozen=True, slots=True)
class MayJoin:
    """Another agent of the same start has claimed already."""

    claim: ClaimRecord


@dataclass(frozen=True, slots=True)
class Stale:
    """Not any more: claim nothing, fence nothing, exit 79."""

    reason: str


def may_start(
    me: Starter,
    claims: Sequence[ClaimRecord],
    newest_submission: int,
    *,
    tombstone: bool,
    done: bool,
    damaged: Sequence[int] = (),
) -> MayClaim | MayJoin | Stale:
    """The rule that keeps a stale requeue from stealing a run.

    An attempt may start only if (submission, restart count) is greater than that of every
    claim, the submission is the newest, no other backend job has claimed it, and the run is
    neither cancelled nor done.

    damaged: attempts whose claim cannot be read. One made before this submission was created
    is of an earlier one; of a later one nobody knows, and only the next submission may go
    past it.
    """
    if done:
        return Stale("the run is finished")
    if tombstone:
        return Stale("the run is cancelled")
    if me.submission > newest_submission:
        return Stale(f"submission {me.submission} does not stand in the run directory")
    if me.submission != newest_submission:
        return Stale(f"submission {me.submission} was followed by {newest_submission}")
    doubtful = max(damaged, default=0)
    if doubtful > me.after_attempt:
        return Stale(f"the claim of attempt {doubtful} is damaged: the next submission passes it")
    mine = [c for c in claims if c.submission == me.submission]
    other = next((c for c in mine if c.backend_id != me.backend_id), None)
    if other is not None:
        return Stale(f"submission {me.submission} belongs to job {other.backend_id}")
    newest = max(claims, key=lambda c: c.attempt, default=None)
    if newest is None:
        return MayClaim(doubtful + 1)
    key = (me.submission, me.restart_count)
    if key == (newest.submission, newest.restart_count):
        return MayJoin(newest)
    if any((c.submission, c.restart_count) >= key for c in claims):
        return Stale(f"start {me.restart_count} of job {me.backend_id} is older than the newest")
    return MayClaim(max(newest.attempt, doubtful) + 1)
