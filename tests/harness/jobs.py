"""Small jobs for trainer tests, and the pictures and the model that they train on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)

SAMPLES, HELD_OUT = 50, 5
DEEPSPEED: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}
NF4: dict[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}


def job(
    folder: Path,
    *,
    ranks: int = 2,
    micro: int = 2,
    accumulation: int = 3,
    every_steps: int | None = 4,
    evaluate: bool = False,
    **training: Any,
) -> ResolvedJob:
    """A job on `folder`/model, train.json and eval.json; `training` overrides the defaults."""
    return ResolvedJob(
        name="test",
        backend="local",
        model=ModelSpec(path=str(folder / "model")),
        quantization=NF4,
        lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "llm"},
        data=DataSpec(
            train=str(folder / "train.json"), eval=str(folder / "eval.json") if evaluate else None
        ),
        training={
            "max_steps": 8,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "seed": 7,
            **training,
        },
        deepspeed=DEEPSPEED,
        zero_stage=2,
        resources=Resources(nodes=1, gpus_per_node=ranks),
        checkpoint=CheckpointSpec(uri=str(folder / "runs"), every_steps=every_steps),
        preemption=PreemptionSpec(grace_s=60.0),
        batch=BatchPlan(micro=micro, accumulation=accumulation, world_size=ranks),
    )


def write_data(folder: Path) -> None:
    """Small pictures in plain colours, in the original Qwen-VL format."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    for part, first, count in (("train", 0, SAMPLES), ("eval", SAMPLES, HELD_OUT)):
        records = []
        for i in range(first, first + count):
            Image.new("RGB", (56, 56), (i * 5 % 256, i * 37 % 256, 90)).save(
                folder / f"images/{i}.png"
            )
            question = f"Picture 1: <img>images/{i}.png</img>\nWhat is in the picture?"
            records.append(
                {
                    "id": str(i),
                    "conversations": [
                        {"from": "user", "value": question},
                        {"from": "assistant", "value": f"A square, number {i}."},
                    ],
                }
            )
        (folder / f"{part}.json").write_text(json.dumps(records))


def make_model(folder: Path) -> None:
    """A tiny random Qwen2.5-VL at `folder`/model."""
    argv = [sys.executable, "-m", "trainer.testing.tiny", str(folder / "model")]
    subprocess.run(argv, check=True, timeout=300)
