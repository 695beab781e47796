"""Keeping new jobs away from nodes on which attempts died: the runs of a user learn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.contract.resolved import ResolvedJob
from orchestrator.controller.observe import Seen
from orchestrator.controller.run import Run
from orchestrator.domain.node_exclusion import (
    EXCLUDED_S,
    ExcludedNode,
    excluded_nodes,
    quick_deaths,
)
from orchestrator.registry.store import Registry

REMEMBERED_S = 2 * EXCLUDED_S
"""How long a death matters: the second on a node may come just before the first is a day old."""


def note_deaths(run: Run, seen: Seen) -> None:
    """Enter what the run's attempts say of the nodes they died on. May be repeated."""
    now = run.clock.now()
    if run.backend.capabilities.excludes_nodes:
        deaths = quick_deaths(run.run_id, seen.facts.attempts, now)
        run.registry.add_deaths(deaths, since=now - REMEMBERED_S)


def excluded(registry: Registry, now: float) -> Sequence[ExcludedNode]:
    """The nodes that new jobs keep away from now."""
    return excluded_nodes(registry.deaths(now - REMEMBERED_S), now)


def keeping_away(job: ResolvedJob, nodes: Sequence[ExcludedNode]) -> ResolvedJob:
    """The job with these nodes added to those that its owner or its site excludes."""
    given = job.slurm.get("exclude")
    names = [str(given)] if given else []
    return replace(
        job, slurm={**job.slurm, "exclude": ",".join([*names, *(n.node for n in nodes)])}
    )
