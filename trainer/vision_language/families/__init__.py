"""The model families that can be trained, and which one a model belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.contract.regular import read_regular
from orchestrator.errors import UserError
from trainer.vision_language.families.base import Family
from trainer.vision_language.families.qwen2_5_vl import QWEN2_5_VL
from trainer.vision_language.families.qwen2_vl import QWEN2_VL
from trainer.vision_language.families.qwen3_vl import QWEN3_VL

__all__ = ["FAMILIES", "Family", "family_of", "lora_pattern"]

FAMILIES: tuple[Family, ...] = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)
"""Every known family."""


def family_of(model_path: str | Path) -> Family:
    """The family of the model in a local folder, by `model_type` in its config.json.

    Raises UserError when there is no such file, or when the type is of no known family.
    """
    file = Path(model_path) / "config.json"
    try:
        model_type = json.loads(read_regular(file)).get("model_type")
    except (OSError, ValueError, AttributeError) as fault:
        raise UserError(
            f"{model_path} is not a model folder: {file.name}: {fault}",
            hint="model.path is a folder as save_pretrained writes it",
        ) from None
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for family in FAMILIES for t in family.model_types)
    raise UserError(f"{model_path}: model_type {model_type!r} is not supported, known are {known}")


def lora_pattern(family: Family, target_modules: str) -> str:
    """The regular expression behind a preset's name; any other text is one already."""
    return family.lora_presets.get(target_modules, target_modules)
