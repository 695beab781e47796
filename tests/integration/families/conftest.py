"""A tiny model of each family, pictures of digits, and workplaces for runs on them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.runs import ROOT
from tests.harness.training import TrainingBench

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TRAIN, HELD_OUT = 1200, 200


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits: train.json, eval.json, images/."""
    folder = tmp_path_factory.mktemp("digits")
    script = runpy.run_path(str(ROOT / "examples/digits/make_data.py"))
    script["make_data"](folder, TRAIN, HELD_OUT)
    return folder


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Callable[[str], Path]:
    """Folder with a family's model beside the digits."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"place-{family}"
        if not folder.exists():
            shutil.copytree(digits, folder)
            argv = [
                sys.executable,
                "-m",
                "trainer.testing.tiny",
                str(folder / "model"),
                "--family",
                family,
            ]
            subprocess.run(argv, check=True, timeout=300, cwd=ROOT)
        return folder

    return make


@pytest.fixture
def bench_of(
    tmp_path: Path, workplace: Callable[[str], Path]
) -> Iterator[Callable[[str], TrainingBench]]:
    """Workplaces whose agents do not outlive the test."""
    made: list[TrainingBench] = []

    def make(family: str) -> TrainingBench:
        (tmp_path / family).mkdir(exist_ok=True)
        made.append(TrainingBench(tmp_path / family, data=workplace(family)))
        return made[-1]

    yield make
    for bench in made:
        bench.close()
