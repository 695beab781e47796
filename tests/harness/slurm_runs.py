"""Whole runs on a real Slurm with the torch-free trainer, driven pass by pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.contract.resolved import ResolvedJob, Resources
from tests.harness.runs import Bench, Driven
from tests.harness.slurm_cluster import Cluster, version


@dataclass(kw_only=True)
class SlurmBench(Bench):
    """A workplace whose jobs run on `cluster`; two ranks in all, one node or two."""

    cluster: Cluster

    def job(self, **changes: Any) -> ResolvedJob:
        nodes = changes.pop("nodes", 1)
        limit = changes.pop("time_limit_s", 300)
        slurm = changes.pop("slurm", {"partition": "preemptible"})
        job = super().job(**changes)
        shape = Resources(nodes=nodes, gpus_per_node=2 // nodes, time_limit_s=limit)
        return replace(job, backend="slurm", resources=shape, slurm=slurm)

    def close(self) -> None:
        self.cluster.cancel_all()

    def restarts(self, run: Driven) -> int:
        """What Slurm counts for the run's newest job."""
        return int(self.cluster.job(job_id(run))["Restarts"])

    def started_again(self, run: Driven, count: int) -> bool:
        """True if Slurm counts so many restarts of the run's newest job.

        From 24.05 on it starts a job that was once preempted one more time after it is done,
        though it had requeued itself: that start finds nothing to do.
        """
        return self.restarts(run) - count in ((0, 1) if version() >= (24, 5) else (0,))

    def until_state(self, run: Driven, *states: str, seconds: float = 40.0) -> str:
        """Until Slurm itself says one of these; returns it."""
        return until(lambda: self.cluster.job(job_id(run))["JobState"], states, seconds)


def until(ask: Callable[[], str], wanted: tuple[str, ...], seconds: float) -> str:
    """Ask until the answer is one of `wanted`. AssertionError past the time."""
    end = time.monotonic() + seconds
    while (found := ask()) not in wanted:
        assert time.monotonic() < end, f"{found}, not {' or '.join(wanted)}"
        time.sleep(0.2)
    return found


def job_id(run: Driven) -> str:
    """Slurm's id of the run's newest submission."""
    found = run.job()
    assert found is not None, "the newest submission was never handed over"
    return found.id


def causes(run: Driven) -> list[str]:
    """What Slurm said of each notice, oldest first."""
    return [e["data"]["cause"] for e in run.events("cause")]
