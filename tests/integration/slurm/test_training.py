"""Real Q-LoRA training of the tiny model, preempted by Slurm: the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import jobs
from tests.harness.runs import Bench
from tests.harness.slurm_runs import SlurmBench, causes, saved_all

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_real_training_is_the_same_bit_for_bit(bench: SlurmBench, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    jobs.write_data(data)
    jobs.make_model(data)
    job = jobs.job(data)
    local = Bench(tmp_path / "calm", module="trainer")
    calm = local.submit(job)
    assert calm.drive(seconds=400.0).state == "SUCCEEDED", calm.logs()

    bench.module = "trainer"
    slurm = replace(job, backend="slurm", slurm={"partition": "preemptible"})
    run = bench.submit(slurm)
    run.drive(lambda s: s.row["step"] >= 3 and s.state == "RUNNING", seconds=400.0)
    bench.cluster.take_nodes()
    end = run.drive(seconds=400.0)
    assert end.state == "SUCCEEDED", run.logs()
    assert (end.row["attempt"], bench.restarts(run), end.row["lost_steps"]) == (2, 1, 0)
    assert causes(run) == ["preempted"]
    assert saved_all(run)
    assert run.outcome() == calm.outcome()
