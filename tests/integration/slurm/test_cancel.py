"""A cancel, ours or by `scancel`, at any moment: saved if it can be, and never back."""

from __future__ import annotations

import time

import pytest

from orchestrator.operations.actions import cancel
from orchestrator.run_directory import attempts
from tests.harness.runs import Driven, saved_all
from tests.harness.slurm_runs import SlurmBench, causes, job_id

pytestmark = pytest.mark.slurm

STEP_S = 0.2


def stays_cancelled(bench: SlurmBench, run: Driven, *, restarts: int = 0) -> None:
    """CANCELLED for Slurm and for us, now and later."""
    end = run.drive(seconds=60.0)
    assert end.state == "CANCELLED", end.row
    bench.until_state(run, "CANCELLED")
    assert attempts.has_tombstone(run.storage)
    time.sleep(7.0)  # a requeued job would be eligible by now
    assert bench.cluster.job(job_id(run))["JobState"] == "CANCELLED"
    assert bench.started_again(run, restarts)
    assert run.look().state == "CANCELLED"
    assert len(attempts.read_submissions(run.storage)) == 1


@pytest.mark.parametrize("ours", [True, False], ids=["cancel", "scancel"])
def test_while_it_trains(bench: SlurmBench, ours: bool) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    if ours:
        assert cancel(run.run)
    else:
        bench.cluster.client("scancel", job_id(run))
    stays_cancelled(bench, run)
    assert saved_all(run)
    assert "cancelled" in causes(run)
    assert run.look().row["preemptions"] == 0


def test_while_it_waits_in_the_queue(bench: SlurmBench) -> None:
    bench.cluster.take_nodes(3.0)
    run = bench.submit(step_s=STEP_S)
    assert run.look().state == "QUEUED"
    bench.cluster.client("scancel", job_id(run))
    stays_cancelled(bench, run)
    assert not attempts.read_claims(run.storage)


def test_while_a_notice_is_served(bench: SlurmBench) -> None:
    run = bench.submit(step_s=STEP_S, save_s=3.0)
    run.until_step(3)
    bench.cluster.take_nodes()
    run.drive(lambda _: bool(run.events("stop_agreed")))
    bench.cluster.client("scancel", job_id(run))
    stays_cancelled(bench, run)


def test_after_a_notice_before_the_next_start(bench: SlurmBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    bench.cluster.take_nodes()
    bench.until_state(run, "PENDING")
    bench.cluster.client("scancel", job_id(run))
    stays_cancelled(bench, run, restarts=1)
    assert saved_all(run)
