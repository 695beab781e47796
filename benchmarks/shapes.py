"""Random weights in the shape of a real model, made on the device one file at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from trainer.testing.tiny import make_tiny

FILE_BYTES = 2 << 30
SPREAD = 0.02
"""Standard deviation of the weights, as such models are initialised."""

SEVEN_B: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "out_hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}  # fmt: skip
"""Of Qwen2.5-VL-7B; tokenizer and pictures stay those of the tiny model."""


def make_shaped(
    folder: Path, device: torch.device, shape: dict[str, dict[str, Any]], seed: int = 0
) -> Path:
    """A Qwen2.5-VL of this shape in bfloat16; the folder, if it is not there already."""
    target = folder / "model"
    if (target / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return target
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(make_tiny("qwen2_5_vl", folder / "tiny"), target)
    (target / "model.safetensors").unlink()
    config = _config(target, shape)
    config.save_pretrained(target)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    torch.manual_seed(seed)
    _write(target, model, device)
    return target


def _config(tiny: Path, shape: dict[str, dict[str, Any]]) -> Any:
    """The tiny model's, with other sizes; what follows from them is left to transformers."""
    known = AutoConfig.from_pretrained(tiny).to_dict()
    family = known.pop("model_type")
    known["text_config"].pop("layer_types", None)
    return AutoConfig.for_model(
        family, **{**known, **{part: {**known[part], **values} for part, values in shape.items()}}
    )


def _write(target: Path, model: Any, device: torch.device) -> None:
    places, total = {}, 0
    for number, names in enumerate(_files(model), 1):
        file = f"model-{number:05d}.safetensors"
        shapes = dict(model.named_parameters())
        tensors = {name: _random(name, shapes[name].shape, device) for name in names}
        save_file(tensors, target / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (target / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index))


def _files(model: Any) -> Iterator[list[str]]:
    """Names of the parameters of each file."""
    names: list[str] = []
    size = 0
    for name, parameter in model.named_parameters():
        if names and size + 2 * parameter.numel() > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * parameter.numel()
    yield names


def _random(name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
    if len(shape) > 1:
        made = torch.randn(shape, device=device, dtype=torch.bfloat16) * SPREAD
    else:
        made = torch.zeros(shape, dtype=torch.bfloat16) + (not name.endswith("bias"))
    return made.cpu()
