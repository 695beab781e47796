"""Jobs that Slurm itself holds once they have failed: nobody would release them."""

from __future__ import annotations

import pytest

from tests.harness.slurm_runs import SlurmBench, job_id, until

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(150)
def test_a_crash_that_the_site_holds_is_started_anew(bench: SlurmBench) -> None:
    """RequeueExitHold leaves it in SPECIAL_EXIT; released, it would start for nothing."""
    cluster = bench.cluster
    cluster.reconfigure(RequeueExitHold="1")
    try:
        run = bench.submit(step_s=0.05, crash_at="7:0")
        run.drive(lambda s: s.row["attempt"] >= 1)
        held = job_id(run)
        bench.until_state(run, "SPECIAL_EXIT")
        step = run.look()
        assert (step.state, step.row["reason"]) == ("REQUEUED", "failed (crash)"), step.row
        run.hurry()
        run.until_attempt(2)
        until(lambda: cluster.job(held)["JobState"], ("CANCELLED",), 20.0)
    finally:
        cluster.cancel_all()
        cluster.reconfigure()
