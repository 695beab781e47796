"""`drill` on the local backend: two whole runs of the torch-free trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.shells import JOB

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    samples = [{"conversations": [{"from": "user", "value": f"{i}"}]} for i in range(50)]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def drill(folder: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "drill", "job.yaml", *argv],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "QVL_STATE_DIR": str(folder / "state"),
            "QVL_TRAINER_MODULE": "trainer.fake",
            "QVL_FAKE_STEP_S": "0.2",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


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
