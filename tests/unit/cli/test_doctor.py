"""`doctor`, with scontrol's real answers given by a stand-in on PATH."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.store import Registry, RunEntry
from tests.unit.cli.shells import Desk, Shell

ANSWERS = Path(__file__).parents[1] / "doctor" / "answers"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm that answer from files in the folder returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("config", "partitions"):
        text = (ANSWERS / f"{name}-22.05.txt").read_text()
        (folder / name).write_text(text)
    script = (
        f'#!/bin/sh\ncase "$*" in *config*) cat {folder}/config ;;\n'
        f"*) cat {folder}/partitions ;; esac\n"
    )
    for name in ("scontrol", "sbatch", "srun", "squeue", "scancel"):
        path = folder / name
        path.write_text(script if name == "scontrol" else "#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("QVL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QVL_SITE_FILE", raising=False)
    return folder


def levels(found: Any) -> dict[str, str]:
    return {f["subject"]: f["level"] for f in found["findings"]}


def test_a_cluster(shell: Shell, scontrol: Path) -> None:
    found = levels(shell.json("doctor"))
    assert found["partition preemptible"] == "good"
    assert found["GraceTime of preemptible"] == "note"
    assert "GPUs" not in found


def test_a_danger_has_its_exit_code_and_its_cure(shell: Shell, scontrol: Path) -> None:
    path = scontrol / "partitions"
    path.write_text(path.read_text().replace("PreemptMode=REQUEUE", "PreemptMode=SUSPEND"))
    said = shell("doctor", code=78)
    assert "danger  partition preemptible: PreemptMode=SUSPEND" in said
    assert "why: a suspended job keeps its GPU memory" in said
    assert "change: slurm.conf: PartitionName=preemptible ... PreemptMode=REQUEUE" in said
    assert said.startswith("danger")


def test_the_grace_is_held_against_measured_saves(
    shell: Shell, scontrol: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "state")
    for name, save in (("a", 4.0), ("b", 33.0)):
        entry = RunEntry(run_id=name, name=name, backend="slurm", uri="/x", created_at=0.0, gpus=1)
        registry.add(entry)
        registry.saw(name, {"save_seconds": save}, final=True, at=0.0)
    found = shell.json("doctor", code=78)
    (grace,) = [f for f in found["findings"] if f["subject"] == "GraceTime of preemptible"]
    assert grace["level"] == "danger"
    assert "a save took 33.0 s" in grace["why"]
    assert "GraceTime=50" in grace["change"]


def test_a_jobs_own_needs(desk: Desk, scontrol: Path) -> None:
    text = desk.job.read_text().replace("backend: local", "backend: slurm")
    desk.job.write_text(text + "slurm: {partition: preemptible}\n")
    found = desk.json("doctor", str(desk.job))
    assert levels(found)["DefaultTime of preemptible"] == "note"
    desk.job.write_text(text.replace("grace_s: 10", "grace_s: 90"))
    assert levels(desk.json("doctor", str(desk.job), code=78))["preemption.grace_s"] == "danger"


def test_a_site_file_that_promises_too_much(shell: Shell, scontrol: Path, tmp_path: Path) -> None:
    site = tmp_path / "my-site.yaml"
    site.write_text("slurm: {partitions: [{name: preemptible, grace_s: 60}]}\n")
    said = shell("doctor", "--site", str(site), code=78)
    assert "my-site.yaml: grace_s of preemptible: 60 s, but Slurm gives 20 s" in said
    assert "change: slurm.partitions: {name: preemptible, grace_s: 20}" in said
    site.write_text("")
    site.chmod(0o666)
    found = levels(shell.json("doctor", "--site", str(site), code=78))
    assert found[str(site)] == "danger"


def test_a_slurm_that_does_not_answer_is_a_warning(shell: Shell, scontrol: Path) -> None:
    (scontrol / "scontrol").write_text(
        "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    found = shell.json("doctor")
    assert levels(found)["Slurm"] == "warning"


def test_a_missing_client_is_a_danger(
    shell: Shell, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(scontrol))
    (scontrol / "srun").unlink()
    assert levels(shell.json("doctor", code=78))["srun"] == "danger"


def test_a_local_machine(shell: Shell, scontrol: Path) -> None:
    found = levels(shell.json("doctor", "--backend", "local"))
    assert not any("partition" in subject for subject in found)
    assert "GPUs" in found
    for finding in shell.json("doctor", "--backend", "local")["findings"]:
        assert finding["change"] != "nvidia-smi"


def test_what_is_good_is_shown_on_demand(shell: Shell, scontrol: Path) -> None:
    assert not any(line.startswith("good") for line in shell("doctor").splitlines())
    assert "good    partition preemptible: preempted jobs are requeued" in shell("doctor", "--all")


def test_the_probe_says_why_slurm_refuses_it(shell: Shell, scontrol: Path) -> None:
    (scontrol / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n"
    )
    shell("doctor", "--probe", "--partition", "nope", code=78)
    assert "Slurm refuses the probe: sbatch: error: invalid partition" in shell.err


def test_help_has_an_example(shell: Shell) -> None:
    assert "Examples:" in shell("doctor", "--help")


def test_a_kubernetes_job_is_not_judged_by_this_machine(desk: Desk, scontrol: Path) -> None:
    text = desk.job.read_text().replace("backend: local", "backend: kubernetes")
    desk.job.write_text(text + "kubernetes: {image: example.org/qvl:1}\n")
    found = desk.json("doctor", str(desk.job))
    (one,) = found["findings"]
    assert (one["level"], one["subject"]) == ("warning", "Kubernetes")
    assert "cannot be judged yet" in one["what"]
    said = desk("doctor", str(desk.job))
    assert "0 danger" not in said
    assert "good" not in said
    desk("doctor", str(desk.job), "--probe", code=2)
    assert "--probe submits a Slurm job" in desk.err
