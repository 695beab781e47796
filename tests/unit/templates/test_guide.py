"""The administrator's guide and its examples say what the program does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import cli
from orchestrator.config.load import load_site, parse_job, resolve_loaded
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.models.site_slurm import Container, GpuType, Limit, Partition, SlurmSite
from orchestrator.contract.spec import TrainSpec
from orchestrator.operations import site_templates as templates
from orchestrator.operations.site_templates import check_template, sample_values, site_template
from orchestrator.templates.find import find_for
from orchestrator.templates.render import render
from tests.unit.config.conftest import JOB, Folder

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "slurm" / "README.md").read_text()
EXAMPLES = sorted((ROOT / "slurm" / "examples").iterdir())
COMMANDS = re.findall(r"(?m)^    qvl-orchestrate (.+)$", GUIDE)


@pytest.mark.parametrize("model", [SlurmSite, Partition, GpuType, Container, Limit])
def test_every_field_of_the_site_file_is_explained(model: type[SiteConfig]) -> None:
    named = set(re.findall(r"`(?:slurm\.)?([a-z_]+)`|\[\[?slurm\.([a-z_]+)", GUIDE))
    words = {word for pair in named for word in pair}
    assert set(model.model_fields) - words == set()


def test_every_value_is_explained() -> None:
    missing = [v for v in sample_values(SiteConfig(), 1, 1) if f"`{v}`" not in GUIDE]
    assert missing == []


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_guide_exists(line: str) -> None:
    words = shlex.split(line)
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words:
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    command.make_context("it", words)


def test_there_are_three_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["container", "gpu-types", "modules"]
    assert all(f"examples/{path.name}/site.yaml" in GUIDE for path in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_right(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_sbatch", lambda *_: ([], False))
    site = load_site(example / "site.yaml")
    report = check_template(site, site_template(site, None))
    assert report.findings == ()
    has_own = (example / "templates").exists()
    assert report.template.origin == ("site" if has_own else "checkout")


def batch_file(folder: Folder, example: str, *overrides: str) -> str:
    site = load_site(ROOT / "slurm" / "examples" / example / "site.yaml")
    text = JOB.replace("preemption: {grace_s: 60}\n", "")
    job = resolve_loaded(parse_job(text, folder.job, ["backend=slurm", *overrides]), site)
    spec = TrainSpec(
        run_id="r", storage="/s", submission=1, backend="slurm", nodes=job.resources.nodes,
        gpus_per_node=job.resources.gpus_per_node, grace_s=job.preemption.grace_s,
        python=job.python or "/usr/bin/python3",
    )  # fmt: skip
    values = templates.template_values(job, spec)
    return render(find_for("slurm", "train.sbatch.j2", job.slurm), values).text


def test_what_the_examples_give_a_job(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    text = batch_file(folder, "modules")
    assert text.index("module load cuda/12.4") < text.index("module load gcc")
    assert "#SBATCH --gpus-per-node=2\n" in text
    text = batch_file(folder, "container", "slurm.account=vision")
    assert "#SBATCH --gres=gpu:2\n" in text
    assert "apptainer exec --nv --bind /shared --bind /home /shared/images/qvl-train.sif " in text
    assert "qvl_image=/shared/images/qvl-train.sif\n" in text
    text = batch_file(folder, "gpu-types", "slurm.gpu_type=h100", "resources.gpus_per_node=4")
    assert "#SBATCH --gpus-per-node=h100:4\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --partition=nograce\n" in text
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in text
    text = batch_file(folder, "gpu-types")
    assert "#SBATCH --constraint=a100\n" in text
    assert "#SBATCH --exclusive" not in text
