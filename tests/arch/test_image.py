"""k8s/Dockerfile by other means than a docker engine: its order, its commands, its context."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text()


def instructions() -> list[str]:
    """One line each, comments left out."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [x for x in joined.splitlines() if x.strip() and not x.startswith("#")]


def context() -> list[Path]:
    """What .dockerignore lets through: a list of what is allowed, as this test reads it."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [x for x in lines if x and not x.startswith("#")]
    assert rules[0] == "*"
    assert rules[-1] == "**/__pycache__"
    allowed = [ROOT / x.removeprefix("!") for x in rules[1:-1]]
    assert all(x.startswith("!") for x in rules[1:-1])
    files = [f for a in allowed for f in ([a] if a.is_file() else sorted(a.rglob("*")))]
    return [f for f in files if f.is_file() and "__pycache__" not in f.parts]


def test_what_is_needed_is_installed_before_the_code_is_there() -> None:
    found = instructions()
    code = found.index("COPY . .")
    before = [x for x in found[:code] if x.startswith("COPY")]
    assert before == ["COPY pyproject.toml constraints.txt ./"]
    assert any("pip install -c constraints.txt -r requirements.txt" in x for x in found[:code])
    assert found[code + 1] == "RUN pip install --no-deps --no-build-isolation ."


def test_the_base_can_be_pinned_in_one_place() -> None:
    found = instructions()
    assert found[0].startswith("ARG BASE=python:3.")
    assert [x.split()[1] for x in found if x.startswith("FROM")] == ["${BASE}"] * 2
    assert f"imagetools inspect {found[0].partition('=')[2]} --format" in DOCKERFILE


def test_its_list_of_requirements_is_the_project_s(tmp_path: Path) -> None:
    (command,) = (x for x in instructions() if "requirements.txt &&" in x.replace("    ", " "))
    code = command.partition('python -c "')[2].partition('" >')[0]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"]}
    for extra in ("train", "s3", "kubernetes"):
        wanted |= {*project["optional-dependencies"][extra]}
    assert wanted < {*said}
    torch = next(x for x in instructions() if "torch==" in x)
    assert f"\n{torch.rpartition(' ')[2]}\n" in (ROOT / "constraints.txt").read_text()


def test_the_context_is_small_and_makes_the_whole_wheel(tmp_path: Path) -> None:
    files = context()
    assert sum(f.stat().st_size for f in files) < 5_000_000
    for file in files:
        copy = tmp_path / "src" / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(argv, cwd=tmp_path / "src", check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [f.relative_to(ROOT) for f in files if f.relative_to(ROOT).parts[0] == "orchestrator"]
    assert {str(f) for f in wanted} <= names
    for name in ("slurm/train.sbatch.j2", "k8s/job.yaml.j2", "examples/job.yaml"):
        assert f"orchestrator/_data/{name}" in names
    assert any(n.startswith("trainer/") for n in names)
