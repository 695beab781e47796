"""`drill` on the local backend: two whole runs of the torch-free trainer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.integration.local.conftest import command


def drill(folder: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return command(folder, "drill", "job.yaml", *argv, **{"QVL_FAKE_STEP_S": "0.2", **environ})


def test_a_job_that_survives(folder: Path) -> None:
    done = drill(folder, "--steps", "30", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    (line,) = found["preemptions"]
    assert 0 < line["step"] < 30
    assert line["resumed_step"] == line["step"]
    times = [line[k] for k in ("agreed", "durable", "requeued", "first_step")]
    assert times == sorted(times)
    assert list((folder / "runs").iterdir()) == []  # both copies are removed again


def test_a_save_that_takes_too_long_fails_the_drill(folder: Path) -> None:
    done = drill(folder, "--steps", "30", "--set", "preemption.grace_s=2", QVL_FAKE_SAVE_S="6")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED  attempt 1: " in done.stdout
    assert "look at  qvl-orchestrate events digits-drill-a-" in done.stdout
    assert len(list((folder / "runs").iterdir())) == 2  # kept


def test_a_bad_job_is_refused_before_anything_is_submitted(folder: Path) -> None:
    done = drill(folder, "--set", "lora.rr=3")
    assert done.returncode == 78
    assert "lora.rr" in done.stderr
    assert not (folder / "runs").exists()
    done = drill(folder, "--preempt-with", "high")
    assert done.returncode == 78
    assert "--preempt-with is for backend: slurm" in done.stderr
