"""A node on which attempts die at once, and a start that the site's own script refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.clock import SystemClock
from orchestrator.controller import node_exclusion
from tests.harness.slurm_runs import SlurmBench, job_id

pytestmark = pytest.mark.slurm


class Later(SystemClock):
    """A clock on which a back-off of minutes is over, and a day is not."""

    def now(self) -> float:
        return super().now() + 7200.0


def test_new_jobs_keep_away_from_a_node_on_which_two_attempts_died(bench: SlurmBench) -> None:
    """Also one that would leave no node at all is submitted, without the list."""
    pinned = {"partition": "preemptible", "options": ["--nodelist=qn1"]}
    run = bench.submit(bench.job(slurm=pinned), step_s=0.05, crash_at="3:0")
    bench.until_state(run, "FAILED")
    run.look()
    run.run = replace(run.run, clock=Later())
    run.look()
    bench.until_state(run, "FAILED")
    run.look()
    (bad,) = node_exclusion.excluded(bench.registry, SystemClock().now())
    assert (bad.node, bad.deaths) == ("qn1", 2)

    other = bench.submit(step_s=0.01)
    assert other.drive().state == "SUCCEEDED"
    job = bench.cluster.job(job_id(other))
    assert (job["ExcNodeList"], job["BatchHost"]) == ("qn1", "qn2")

    only = bench.submit(bench.job(slurm=pinned), step_s=0.01)
    assert only.drive().state == "SUCCEEDED"
    job = bench.cluster.job(job_id(only))
    assert (job["ExcNodeList"], job["BatchHost"]) == ("(null)", "qn1")


def test_a_start_that_the_script_refuses_is_held_with_its_last_line(bench: SlurmBench) -> None:
    setup = ["echo no such module: cuda/99 >&2; exit 78"]
    run = bench.submit(bench.job(slurm={"partition": "preemptible", "setup": setup}))
    end = run.drive()
    assert (end.state, end.row["reason"]) == ("HELD", "refused")
    assert "no such module: cuda/99" in end.row["message"]
