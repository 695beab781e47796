from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.runs import ROOT, Bench
from tests.harness.smalldisk import SmallDisk, small_disk
from tests.unit.cli.shells import JOB


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workplace whose agents do not outlive the test."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job file and what it names."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    samples = [{"conversations": [{"from": "user", "value": f"{i}"}]} for i in range(50)]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Makes file systems of a size that the test chooses."""
    with small_disk(tmp_path / "small") as disk:
        yield disk


def command(folder: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the torch-free trainer."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *argv],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "QVL_STATE_DIR": str(folder / "state"),
            "QVL_TRAINER_MODULE": "trainer.testing.fake",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
