"""The start of an attempt: its base out of a snapshot, against quantizing it anew."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.measure import Table, interleave, seconds
from benchmarks.ours import QuietRank, assignment
from orchestrator.contract.resolved import ModelSpec
from orchestrator.contract.spec import Assignment
from trainer.base_model.modeling import Loaded, base_digest, base_tensors, load_model
from trainer.base_model.quantization import Base, base_files
from trainer.base_model.snapshot import open_cache
from trainer.collectives.group import Solo
from trainer.testing.tiny import make_tiny

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
ANEW, SNAPSHOT = "quantized anew", "out of the snapshot"


class Rank(QuietRank):
    """The only rank."""

    number = 0


def models(folder: Path, *, wide: bool) -> dict[str, Path]:
    """The tiny Qwen2.5-VL, and one of about 90 million parameters in its language model."""
    found = {"tiny": make_tiny("qwen2_5_vl", folder / "tiny")}
    if wide:
        found["wide"] = _widened(found["tiny"], folder / "wide")
    return found


def starts(model: Path, folder: Path, rounds: int, device: torch.device) -> Table:
    """Base and adapters on the device, ready to train. The snapshot is verified each time."""
    job = _assigned(model, folder)
    anew = _load(job, device, None)
    digest = base_digest(anew.model)
    cache = open_cache(job.job, job.facts, device.type)
    assert cache is not None
    assert anew.base_plan is not None
    files = base_files(base_tensors(anew.model, anew.base_plan), anew.base_plan, lambda: None)
    stored = cache.store(files, digest, "bench")
    assert stored is not None

    def out_of_snapshot() -> Mapping[str, float]:
        rank: Any = Rank()
        base = Base(rank, job, Solo(), device, digest)
        took = seconds(lambda: found.append(base.load(lambda where: _load(job, device, where))))
        if base_digest(found.pop().model) != digest:
            raise RuntimeError("another base came out of the snapshot")
        return {"seconds": took}

    found: list[Loaded] = []
    return interleave(
        {
            ANEW: lambda: {"seconds": seconds(lambda: _load(job, device, None))},
            SNAPSHOT: out_of_snapshot,
        },
        rounds,
    )


def _load(job: Assignment, device: torch.device, snapshot: Path | None) -> Loaded:
    torch.manual_seed(1)
    return load_model(job.job, device, snapshot)


def _assigned(model: Path, folder: Path) -> Assignment:
    plain = assignment(str(folder))
    job = dataclasses.replace(
        plain.job,
        model=ModelSpec(path=str(model)),
        quantization=NF4,
        lora={"r": 8, "target_modules": "llm"},
    )
    return dataclasses.replace(plain, job=job, facts={"model.digest": model.name})


def _widened(tiny: Path, folder: Path) -> Path:
    """The tiny model with a wider language model, random weights."""
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= WIDE
    values["text_config"]["layer_types"] = ["full_attention"] * WIDE["num_hidden_layers"]
    values["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
    values["vision_config"]["out_hidden_size"] = WIDE["hidden_size"]
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(1)
    AutoModelForImageTextToText.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
