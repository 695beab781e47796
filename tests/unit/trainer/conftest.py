"""Tiny models and digits, made once for all tests."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a family."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(family: str) -> Path:
        from trainer.testing.tiny import make_tiny

        return make_tiny(family, folder / family)

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.json, eval.json and images."""
    folder = tmp_path_factory.mktemp("digits")
    script = runpy.run_path(str(ROOT / "examples/digits/make_data.py"))
    script["make_data"](folder, 24, 8)
    return folder


@pytest.fixture(scope="session")
def job(tiny: Callable[[str], Path], digits: Path) -> Callable[..., ResolvedJob]:
    """The job of a family's tiny model; keywords replace fields."""

    def make(family: str = "qwen2_5_vl", **changes: Any) -> ResolvedJob:
        return dataclasses.replace(_job(tiny(family), digits), **changes)

    return make


def _job(model: Path, data: Path) -> ResolvedJob:
    return ResolvedJob(
        name="digits",
        backend="local",
        model=ModelSpec(path=str(model)),
        quantization={
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        },
        lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "llm"},
        data=DataSpec(train=str(data / "train.json"), eval=str(data / "eval.json")),
        training={},
        deepspeed={},
        zero_stage=2,
        resources=Resources(nodes=1, gpus_per_node=1),
        checkpoint=CheckpointSpec(uri=str(data)),
        preemption=PreemptionSpec(grace_s=60),
        batch=BatchPlan(micro=2, accumulation=3, world_size=1),
    )
