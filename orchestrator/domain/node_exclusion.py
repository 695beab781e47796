"""Which nodes to keep away from: those on which attempts died soon after their start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.contract.codes import CRASH
from orchestrator.domain.facts import AttemptFacts
from orchestrator.domain.signature import signature

QUICK_S = 300.0
"""An attempt that ends within so many seconds of its start, without a checkpoint, died quickly."""
DEATHS = 2
EXCLUDED_S = 86_400.0
"""How long a node is kept away from, counted from the last of those deaths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDeath:
    """One attempt that died quickly on one node."""

    node: str
    run_id: str
    attempt: int
    at: float
    """Seconds since the epoch."""
    error: str
    """Signature of the failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedNode:
    """A node that new jobs keep away from, until when (seconds since the epoch), and why."""

    node: str
    until: float
    deaths: int
    error: str


def quick_deaths(
    run_id: str, attempts: Sequence[AttemptFacts], now: float
) -> tuple[NodeDeath, ...]:
    """Crashes, kills and node failures soon after the start, as of `now`. Not out of memory or a
    refusal, which are the run's own, and nothing that followed a notice.
    """
    found = []
    for index, attempt in enumerate(attempts):
        following = attempts[index + 1].started_at if index + 1 < len(attempts) else now
        ended = following if attempt.silent else attempt.ended_at
        if ended is None or not _died_quickly(attempt, ended):
            continue
        error = signature(attempt)
        found += [
            NodeDeath(node=node, run_id=run_id, attempt=attempt.number, at=ended, error=error)
            for node in attempt.failed_on
        ]
    return tuple(found)


def _died_quickly(attempt: AttemptFacts, ended: float) -> bool:
    if attempt.verdict is None or attempt.verdict.code != CRASH or attempt.commits:
        return False
    if attempt.ending in ("timeout", "preempted", "oom", "cancelled"):
        return False
    if attempt.lost and attempt.ending != "node-fail":
        return False
    return attempt.started_at is not None and ended - attempt.started_at <= QUICK_S


def excluded_nodes(deaths: Collection[NodeDeath], now: float) -> tuple[ExcludedNode, ...]:
    """Nodes with enough deaths within a day, by name; `deaths` are those of the last two days.

    A run that died of the same error on several nodes is at fault itself: those deaths blame none.
    """
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for death in deaths:
        places[death.run_id, death.error].add(death.node)
    blamed: dict[str, list[NodeDeath]] = defaultdict(list)
    for death in sorted(deaths, key=lambda d: d.at):
        if len(places[death.run_id, death.error]) == 1:
            blamed[death.node].append(death)
    found = (_excluded(node, blamed[node], now) for node in sorted(blamed))
    return tuple(node for node in found if node is not None)


def _excluded(node: str, deaths: Sequence[NodeDeath], now: float) -> ExcludedNode | None:
    """`deaths`: of that node, oldest first."""
    last = deaths[-1]
    together = sum(1 for d in deaths if last.at - d.at < EXCLUDED_S)
    until = last.at + EXCLUDED_S
    if together < DEATHS or now >= until:
        return None
    return ExcludedNode(node=node, until=until, deaths=together, error=last.error)
