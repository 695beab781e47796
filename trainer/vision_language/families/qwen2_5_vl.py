"""Qwen2.5-VL."""

from __future__ import annotations

from trainer.vision_language.families.base import Family, presets

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    lora_presets=presets(
        blocks=r"blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:gate|up|down)_proj)",
        merger=r"merger\.mlp\.[02]",
    ),
    default_system="You are a helpful assistant.",
)
"""Qwen2.5-VL: windowed vision blocks with gated MLPs, named like the language model's."""
