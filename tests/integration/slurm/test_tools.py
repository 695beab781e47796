"""`drill` and `doctor --probe` on a real Slurm: what they report is what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.slurm_runs import SlurmBench
from tests.unit.cli.shells import JOB

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
SLURM = """\
slurm: {partition: preemptible}
"""
SITE = """\
[slurm]
setup = ["export QVL_FAKE_STEP_S=0.3"]
"""


def orchestrate(bench: SlurmBench, *argv: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a command that a person types on this cluster's login node."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *argv, "--json"],
        cwd=bench.folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "QVL_STATE_DIR": str(bench.folder / "state"),
            "QVL_TRAINER_MODULE": "trainer.testing.fake",
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_drill_is_really_preempted_and_holds(bench: SlurmBench) -> None:
    job = JOB.replace("backend: local", "backend: slurm") + SLURM
    job = job.replace("gpus_per_node: 2", "gpus_per_node: 2, time_limit: 10m")
    (bench.folder / "job.yaml").write_text(job)
    (bench.folder / "site.toml").write_text(SITE)
    argv = ("drill", "job.yaml", "--site", "site.toml", "--steps", "90", "--preempt-with", "high")
    code, found = orchestrate(bench, *argv)
    assert code == 0, found
    (line,) = found["preemptions"]
    assert 30 <= line["step"] == line["resumed_step"] < 90
    times = [line[k] for k in ("agreed", "durable", "requeued", "first_step")]
    assert times == sorted(times)
    assert all(check["ok"] for check in found["checks"])
    assert list((bench.folder / "runs").iterdir()) == [], "both copies are removed again"


def test_a_probe_measures_the_grace_that_is_configured(bench: SlurmBench) -> None:
    argv = ("doctor", "--backend", "slurm", "--probe", "--partition", "preemptible")
    _, found = orchestrate(bench, *argv, "--preempt-with", "high")
    by_subject = {f["subject"]: f for f in found["findings"]}
    grace = by_subject["measured grace"]
    assert grace["level"] == "good", found
    assert "(configured: 20 s)" in grace["what"]
    assert 18.0 < float(grace["what"].split(" s from")[0]) < 45.0
    assert by_subject["requeue"]["level"] == "good"
    assert by_subject["scontrol on the node"]["level"] == "good"
    signals = [f["what"] for f in found["findings"] if f["subject"] == "signal"]
    assert any(s.startswith("SIGTERM reached the task") for s in signals)
