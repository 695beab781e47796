"""Slurm loses its state and gives job ids a second time: nothing of ours touches the others."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from orchestrator.errors import UserError
from orchestrator.operations.actions import cancel
from orchestrator.run_directory import attempts
from tests.harness.slurm_runs import SlurmBench, job_id, until

pytestmark = pytest.mark.slurm

STEP_S = 1.0
STRANGER = ("-J", "stranger", "-p", "high", "-w", "qn4", "-o", "/dev/null", "--wrap", "sleep 600")


def forget_everything(bench: SlurmBench) -> None:
    """slurmctld starts again with nothing of what it knew."""
    cluster = bench.cluster
    cluster.kill("slurmctld")
    shutil.rmtree(cluster.folder / "spool" / "ctld")
    (cluster.folder / "spool" / "ctld").mkdir()
    cluster.start_controller()
    cluster.wait_idle(60.0)


def give_out(bench: SlurmBench, wanted: str) -> None:
    """A stranger's job that runs and has that id."""
    for _ in range(int(wanted)):
        job = bench.cluster.client("sbatch", "--parsable", *STRANGER).strip()
        if job == wanted:
            until(lambda: bench.cluster.job(wanted)["JobState"], ("RUNNING",), 30.0)
            return
        bench.cluster.client("scancel", job)
    raise AssertionError(f"job {wanted} was never given out: {job}")


def untouched(bench: SlurmBench, job: str) -> bool:
    shown = bench.cluster.job(job)
    wanted = ("stranger", "RUNNING", "1", "0")
    return tuple(shown[k] for k in ("JobName", "JobState", "Requeue", "Restarts")) == wanted


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm kills the jobs that it has forgotten; their silence is believed after some seconds."""
    monkeypatch.setattr("orchestrator.controller.observe.LOST_AFTER", 0.1)


@pytest.mark.timeout(180)
def test_a_cancel_leaves_the_job_that_has_the_id_by_now(bench: SlurmBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    old = job_id(run)
    forget_everything(bench)
    give_out(bench, old)
    with pytest.raises(UserError, match=f"knows no job {old}"):
        run.notify()
    assert cancel(run.run)
    assert run.drive(seconds=60.0).state == "CANCELLED"
    time.sleep(6.0)  # KillWait
    assert untouched(bench, old)


@pytest.mark.timeout(180)
def test_a_forgotten_run_goes_on_in_a_job_of_its_own(bench: SlurmBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.drive(lambda _: bool(run.commits()))
    old = job_id(run)
    forget_everything(bench)
    give_out(bench, old)
    assert run.drive(seconds=90.0).state == "SUCCEEDED"
    assert job_id(run) != old
    assert untouched(bench, old)


@pytest.mark.timeout(120)
def test_a_job_asks_for_a_requeue_of_none_but_itself(bench: SlurmBench) -> None:
    """Its id belongs to another name by now."""
    run = bench.submit(step_s=0.2)
    run.until_step(3)
    bench.cluster.client("scontrol", "update", f"jobid={job_id(run)}", "name=another")
    [slot] = attempts.read_slots(run.storage, 1)
    os.kill(slot.pid, signal.SIGTERM)
    bench.until_state(run, "FAILED")
    assert bench.restarts(run) == 0
    assert "is another one by now: not requeued" in run.logs()
