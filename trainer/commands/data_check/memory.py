"""How much GPU memory the largest micro-batch may take: an estimate from shapes alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from orchestrator.contract.regular import open_regular, read_regular

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of one weight in NF4 with double quantization: 4 bits, its share of two scales."""
_LORA_BYTES = 4 + 4 + 8
"""Of one adapter weight: float32 value and gradient, two Adam moments (ZeRO divides less)."""
_LOGIT_BYTES = 2 + 4 + 4
"""Of one logit: bfloat16, its float32 copy for the loss, and the gradient."""
_LAYER_BYTES = 2 * 34
"""What a token keeps of one layer without checkpointing, as a multiple of the hidden size: 34 in
16 bits (Korthikanti et al. 2022, without the attention matrix, which SDPA does not keep), twice
that because gated MLPs are wider and adapters keep their inputs too."""
_LORA_WEIGHTS = 28
"""Weights of the adapters on one layer, as a multiple of rank x hidden size: the sides of seven
matrices, in Qwen2.5-VL 7B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What config.json and the weights' headers say of a model."""

    hidden: int
    layers: int
    vocabulary: int
    linear: int
    """Weights in matrices that are quantized."""
    other: int
    """All other weights: embeddings, head, norms, convolutions."""
    max_positions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes on one GPU; the sum is a guide, not a promise."""

    weights: int
    adapter: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.logits


def read_shapes(folder: Path) -> Shapes:
    """Shapes of the model in `folder`; raises OSError and ValueError for what is no model."""
    config = json.loads(read_regular(folder / "config.json"))
    text = config.get("text_config") or config
    linear = other = 0
    for name, shape in _tensors(folder):
        size = prod(shape)
        if len(shape) == 2 and "embed" not in name and "lm_head" not in name:
            linear += size
        else:
            other += size
    return Shapes(
        hidden=int(text["hidden_size"]),
        layers=int(text["num_hidden_layers"]),
        vocabulary=int(text["vocab_size"]),
        linear=linear,
        other=other,
        max_positions=text.get("max_position_embeddings"),
    )


def estimate(
    shapes: Shapes, *, tokens: int, quantized: bool, checkpointing: bool, lora_rank: int
) -> Estimate:
    """Memory of a micro-batch of `tokens`, padding included.

    The adapter is taken to sit on all linear layers of the language model; pictures are
    counted by their tokens. With checkpointing a layer keeps its input in 16 bits, and one
    layer at a time is computed again.
    """
    one = tokens * shapes.hidden
    whole = one * _LAYER_BYTES
    activations = 2 * one * shapes.layers + whole if checkpointing else whole * shapes.layers
    adapter = _LORA_WEIGHTS * lora_rank * shapes.hidden * shapes.layers
    return Estimate(
        weights=int(shapes.linear * (_NF4_BYTES if quantized else 2) + shapes.other * 2),
        adapter=adapter * _LORA_BYTES,
        activations=activations,
        logits=tokens * shapes.vocabulary * _LOGIT_BYTES,
    )


def _tensors(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for file in sorted(folder.glob("*.safetensors")):
        with open_regular(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: Mapping[str, Any] = json.loads(stream.read(min(length, 1 << 28)))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tensor["shape"]
