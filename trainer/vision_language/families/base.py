"""What a model family is: the few facts in which one Qwen-VL differs from the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LANGUAGE_LINEARS = (
    r"model\.language_model\.layers\.\d+\."
    r"(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
)
"""Linear layers of the language model, the same in every family; never the head."""

DEFAULT_PRESET = "llm"
"""What `lora.target_modules` means when the job does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models.

    Everything that `lora_presets` does not match stays frozen: the embeddings, the head,
    the norms, the patch embedding, and whatever part of the vision tower a preset leaves.
    """

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that belong to the family."""
    lora_presets: Mapping[str, str]
    """Preset to regular expression; PEFT adapts the modules whose whole name it matches.

    `llm`: the language model's linear layers; `llm+merger`: also the projection of image
    features into it; `llm+vision`: also the whole vision tower, its projection included.
    """
    default_system: str | None
    """System text that the family's chat template adds to a conversation without one."""


def presets(*, blocks: str, merger: str) -> dict[str, str]:
    """The three LoRA presets.

    blocks: pattern of the linear layers of the vision blocks, below `model.visual.`
    merger: pattern of those of the projection, likewise
    """
    return {
        "llm": LANGUAGE_LINEARS,
        "llm+merger": rf"{LANGUAGE_LINEARS}|model\.visual\.(?:{merger})",
        "llm+vision": rf"{LANGUAGE_LINEARS}|model\.visual\.(?:{blocks}|{merger})",
    }
