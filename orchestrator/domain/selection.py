"""Which checkpoint to resume from, and which to give up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartFrom


@dataclass(frozen=True, slots=True)
class Candidates:
    """Commits to try, best first; then, if none is good, what the user asked for."""

    commits: tuple[LogRecord, ...]
    explicit: StartFrom | None
    """Set if the user chose a place and no later commit exists (or all of them are bad)."""


def candidates(live: Sequence[LogRecord], start: StartFrom) -> Candidates:
    """Newest first by log order (not by step: a run may have been sent back).

    `live` are the commits neither retired nor bad, oldest first. With an explicit start
    only commits after it count, since older ones belong to another branch.
    """
    newest_first = tuple(reversed(live))
    if start.kind == "latest":
        return Candidates(newest_first, None)
    later = tuple(r for r in newest_first if r.seq > start.after_seq)
    return Candidates(later, start)


def best(live: Sequence[LogRecord], evaluations: Mapping[int, float], count: int) -> frozenset[int]:
    """Numbers of the `count` commits with the lowest evaluation loss; of equal ones the first.

    evaluations: loss by step. Of several commits of one step the newest counts.
    """
    newest = {r.commit().step: r.seq for r in live}
    ranked = sorted((loss, step) for step, loss in evaluations.items() if step in newest)
    return frozenset(newest[step] for _, step in ranked[:count])


def to_retire(
    live: Sequence[LogRecord],
    *,
    keep_last: int,
    verified: Collection[int],
    pinned: Collection[int] = (),
) -> list[LogRecord]:
    """Commits that may be given up, oldest first.

    Keeps the newest `keep_last`, the pinned ones, and everything that is not older than a
    verified one: nothing is removed before a newer checkpoint was read back and found right.
    """
    newest_verified = max((r.seq for r in live if r.seq in verified), default=0)
    keep = {r.seq for r in live[-max(1, keep_last) :]} | set(pinned)
    return [r for r in live if r.seq not in keep and r.seq < newest_verified]
