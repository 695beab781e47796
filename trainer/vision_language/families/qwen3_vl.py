"""Qwen3-VL, dense."""

from __future__ import annotations

from trainer.vision_language.families.base import Family, presets

QWEN3_VL = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    lora_presets=presets(
        blocks=r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.linear_fc[12])",
        merger=r"(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
    ),
    default_system=None,
)
"""Qwen3-VL: besides the merger, one more projection for each deepstack level."""
