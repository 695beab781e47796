"""An adapter merged into its bfloat16 base on the CPU, measured.

The logits of merged weights are compared with those of the adapter on the same base, and with
those of the adapter on the quantized base that it was trained on: the second difference is
what quantization itself makes, and no merge can take it away.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForImageTextToText

from orchestrator.contract.regular import read_regular
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import UserError
from trainer.base_model.modeling import model_folder
from trainer.commands.result import load_trained, model_inputs
from trainer.commands.tool import Tool
from trainer.data.dataset import ChatDataset, load_dataset
from trainer.vision_language.families import family_of
from trainer.vision_language.families.processor import Encoded, VisionChatProcessor
from trainer.vision_language.formats import DataError, Text, Turn, normalise

_CPU = torch.device("cpu")
_PROBES = 4
"""Samples that the differences are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to merge. `adapter` is a folder in PEFT's format, `out` an empty folder."""

    job: ResolvedJob
    adapter: str
    out: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the logits of two models on the same tokens."""

    largest: float
    mean: float
    same_choice: float
    """Share of positions at which both find the same token most likely."""

    @classmethod
    def of(cls, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> Difference:
        a, b = torch.cat(list(left)), torch.cat(list(right))
        apart = (a - b).abs()
        same = (a.argmax(-1) == b.argmax(-1)).float().mean()
        return cls(float(apart.max()), float(apart.mean()), float(same))

    def to_json(self) -> dict[str, float]:
        return {
            "largest": self.largest,
            "mean": self.mean,
            "same_choice": self.same_choice,
        }


def work(tool: Tool, request: Request) -> dict[str, Any]:
    """Merge and save; differences, changed layers and what they were measured on.

    Raises UserError for a quantized base, and for an adapter that changes nothing.
    """

    def stage(number: int, what: str) -> None:
        tool.say("progress", what=what, done=number, total=5)

    job = request.job
    folder = model_folder(job.model)
    refuse_quantized(folder)
    processor = VisionChatProcessor.from_pretrained(folder, family_of(folder))
    probes, source = probe_samples(job, processor)
    stage(0, "as it was trained")
    trained = None
    if job.quantization:
        loaded = load_trained(job, request.adapter, _CPU)
        trained = logits(loaded.model, processor, probes)
        del loaded
    stage(1, "loading the base")
    model = load_base(folder, request.adapter)
    stage(2, "measuring the adapter")
    apart = logits(model, processor, probes)
    stage(3, "merging")
    merged, changed, layers = merge(model)
    stage(4, "measuring the merged weights")
    after = logits(merged, processor, probes)
    merged.save_pretrained(request.out)
    processor.save_pretrained(request.out)
    return {
        "layers": layers,
        "changed_layers": changed,
        "measured_on": source,
        "tokens": sum(len(probe.input_ids) for probe in probes),
        "against_adapter": Difference.of(after, apart).to_json(),
        "against_training": None if trained is None else Difference.of(after, trained).to_json(),
    }


def refuse_quantized(folder: Path) -> None:
    """Raises UserError if the weights in `folder` are quantized."""
    config = json.loads(read_regular(folder / "config.json"))
    found = config.get("quantization_config")
    if found:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
        raise UserError(
            f"{folder}: its weights are quantized ({method}): merging into them would round "
            "away a light fine-tuning",
            hint="merge into the bfloat16 base, then quantize the result; or serve the adapter "
            "beside the base: `export`",
        )


def load_base(folder: Path, adapter: str) -> PeftModel:
    """The base in bfloat16 on the CPU, with the adapter beside it."""
    try:
        base = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=torch.bfloat16, device_map={"": "cpu"}
        )
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{folder} cannot be loaded: {fault}") from fault
    model: PeftModel = PeftModel.from_pretrained(base, adapter)
    model.eval()
    return model


def merge(model: PeftModel) -> tuple[Any, int, int]:
    """The base with merged weights, how many layers changed, and how many have an adapter.

    Raises UserError if none did, or if merging gave values that are not finite.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)]
    before = [_digest(layer) for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=True)
    except ValueError as fault:
        raise UserError(f"merging: {fault}") from fault
    changed = sum(old != _digest(layer) for old, layer in zip(before, layers, strict=True))
    if not changed:
        raise UserError("merging changed no weight: the adapter is empty, or was never trained")
    return model.unload(), changed, len(layers)


def _digest(layer: Any) -> bytes:
    weight = layer.get_base_layer().weight.detach().contiguous()
    return bytes(blake3(weight.view(torch.uint8).numpy()).digest())


def logits(
    model: Any, processor: VisionChatProcessor, probes: Sequence[Encoded]
) -> list[torch.Tensor]:
    """Float32 [tokens, vocabulary] of each probe."""
    with torch.no_grad():
        return [model(**model_inputs(processor, probe, _CPU)).logits[0].float() for probe in probes]


def probe_samples(job: ResolvedJob, processor: VisionChatProcessor) -> tuple[list[Encoded], str]:
    """A few samples of the held-out (else the training) data, or a sentence without any."""
    which = "train" if job.data.eval is None else "eval"
    try:
        data = load_dataset(job.data, "train" if which == "train" else "eval", processor, None)
        found = list(islice(_readable(data), _PROBES))
    except UserError:
        found = []
    if found:
        return found, f"{len(found)} samples of the {which} data"
    turns = [Turn("user", (Text("Describe what you can do."),))]
    return [processor.prompt(turns, [])], "one sentence: the data cannot be read here"


def _readable(data: ChatDataset) -> Any:
    for i in range(len(data)):
        try:
            sample = normalise(data.records[i], i)
            yield data.processor.encode(sample.turns, data.pictures(sample))
        except (DataError, ValueError):
            continue
