"""Often, many at once, at the time limit, with hostile values."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.resolved import Resources
from orchestrator.run_directory import attempts
from tests.harness.runs import Bench
from tests.harness.slurm_runs import SlurmBench, causes, job_id
from tests.integration.slurm.test_preemption import check_end

pytestmark = pytest.mark.slurm


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [10, pytest.param(25, marks=pytest.mark.soak)])
def test_preemptions_in_a_row(bench: SlurmBench, count: int) -> None:
    job = bench.job(training={"max_steps": 12 * count, "seed": 7, "learning_rate": 1e-3})
    run = bench.submit(job, step_s=0.15)
    for attempt in range(1, count + 1):
        run.until_step(3 * attempt, attempt=attempt)
        bench.cluster.take_nodes(0.1)
        run.until_attempt(attempt + 1)
    check_end(bench, run, outcome_of(bench, job), restarts=count)
    assert run.look().row["preemptions"] == count
    assert run.look().row["lost_steps"] == 0
    assert causes(run) == ["preempted"] * count


def outcome_of(bench: SlurmBench, job: Any) -> tuple[Any, ...]:
    """Of an undisturbed run of the same job on the local backend."""
    local = Bench(bench.folder / "calm")
    run = local.submit(replace(job, backend="local", resources=Resources(nodes=1, gpus_per_node=2)))
    assert run.drive().state == "SUCCEEDED"
    local.close()
    return run.outcome()


def test_twenty_jobs_on_two_nodes(bench: SlurmBench) -> None:
    """All finish, whoever is preempted in between, and none twice."""
    settings = {"partition": "preemptible", "exclude": "qn3,qn4"}
    job = bench.job(ranks=1, slurm=settings)
    shape = replace(job.resources, gpus_per_node=1)
    job = replace(job, resources=shape, batch=replace(job.batch, world_size=1))
    runs = [bench.submit(job, step_s=0.1) for _ in range(20)]
    taken = 0
    end = time.monotonic() + 180.0
    while not all(run.step is not None and run.step.settled for run in runs):
        assert time.monotonic() < end, [run.step and run.step.row for run in runs]
        for run in runs:
            if run.step is None or not run.step.settled:
                run.look()
        if taken < 3 and any(
            r.step and r.step.row["step"] > 5 and not r.step.settled for r in runs
        ):
            bench.cluster.take_nodes(0.1, nodes=1, on=f"qn{1 + taken % 2}")
            taken += 1
        time.sleep(0.2)
    assert {run.step.state for run in runs if run.step} == {"SUCCEEDED"}
    assert taken == 3
    assert len({run.outcome()[1] for run in runs}) == 1
    for run in runs:
        assert len(attempts.read_submissions(run.storage)) == 1
        # A start that is preempted before it has claimed leaves no attempt.
        starts = [c.restart_count for c in attempts.read_claims(run.storage)]
        assert starts == sorted(set(starts))
        assert bench.started_again(run, starts[-1])


def test_the_time_limit(bench: SlurmBench, calm: tuple[Any, ...]) -> None:
    """Slurm's notice before the limit is served, and the job goes on in a new start.

    The limit is one minute, the shortest there is, and its notice may come a minute early: how
    many starts it takes is Slurm's to choose, that none computes a step twice is ours.
    """
    run = bench.submit(bench.job(time_limit_s=60, slurm={"partition": "nograce"}), step_s=3.3)
    end = run.drive(seconds=240.0)
    assert end.state == "SUCCEEDED", run.logs()
    starts = len(attempts.read_claims(run.storage))
    assert starts >= 2
    assert bench.started_again(run, starts - 1)
    assert causes(run) == ["time-limit"] * (starts - 1)
    assert "SIGUSR1" in {e["data"]["reason"] for e in run.events("notice")}
    assert run.look().row["lost_steps"] == 0
    assert run.outcome() == calm


HOSTILE = 'it\'s "$(touch {0})" `touch {0}` ; touch {0} #\n#SBATCH --hold\n\\ ünï ${{HOME}} \t%j'


def test_hostile_values_stay_values(bench: SlurmBench, tmp_path: Path) -> None:
    """Submitted for real: the variables arrive as they were written, nothing else happens."""
    mark = tmp_path / "touched"
    value = HOSTILE.format(mark)
    run = bench.submit(bench.job(env={"EVIL": value, "PLAIN": "x y"}), step_s=0.3)
    run.until_step(1)
    pids = subprocess.run(
        ["pgrep", "-f", "trainer.testing.fake"], capture_output=True, text=True, check=True
    ).stdout.split()
    environments = [Path(f"/proc/{p}/environ").read_bytes().split(b"\0") for p in pids]
    mine = [e for e in environments if f"QVL_RUN_ID={run.run.run_id}".encode() in e]
    assert mine
    assert all(f"EVIL={value}".encode() in e and b"PLAIN=x y" in e for e in mine)
    assert run.drive().state == "SUCCEEDED"
    assert not mark.exists()
    assert bench.cluster.job(job_id(run))["Priority"] != "0"
