"""Qwen2-VL."""

from __future__ import annotations

from trainer.vision_language.families.base import Family, presets

QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    lora_presets=presets(
        blocks=r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])",
        merger=r"merger\.mlp\.[02]",
    ),
    default_system="You are a helpful assistant.",
)
"""Qwen2-VL and QVQ: vision blocks with two-layer MLPs."""
