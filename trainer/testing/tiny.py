"""Tiny random models of each family, complete with tokenizer and image processor.

For tests and the demo: about 0.2 million parameters, a few seconds to make, no network.
Every quantised layer has at least 64 input features, the smallest that 4-bit layers
can be evaluated with on a CPU.

    python -m trainer.testing.tiny FOLDER [--family qwen2_5_vl] [--seed 0]
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from orchestrator.errors import UserError

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Markup tokens of the families, in the order of their ids here."""

_VOCABULARY = 400
_HIDDEN = 64
_SPREAD = 0.15
"""Standard deviation of the initial weights: with the usual 0.02 a frozen random head of
this width cannot tell tokens apart, and no adapter could learn anything."""
_CORPUS = (
    "system user assistant You are a helpful assistant.",
    "Picture 1: Picture 2: What is in the picture? Describe the image.",
    "Which digit is this? What number do you see?",
    "zero one two three four five six seven eight nine",
    "A red square, a blue circle and a green triangle on a white background.",
)
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' and default_system %}"
    "<|im_start|>system\n{{ default_system }}<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": _HIDDEN, "hidden_size": _HIDDEN, "mlp_ratio": 2, "patch_size": 14},
    "qwen2_5_vl": {
        "hidden_size": _HIDDEN,
        "out_hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        "hidden_size": _HIDDEN,
        "out_hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
}
_ROPE: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"mrope_section": [2, 3, 3], "rope_theta": 1e6},
    "qwen2_5_vl": {"mrope_section": [2, 3, 3], "rope_theta": 1e6},
    "qwen3_vl": {"mrope_section": [4, 2, 2], "rope_theta": 5e6, "mrope_interleaved": True},
}


def make_tiny(family: str, folder: str | Path, seed: int = 0) -> Path:
    """Make a tiny model of `family` in `folder`, unless one is there; the folder.

    The same family, seed and library versions give the same bytes. The folder appears
    whole or not at all. Raises UserError for an unknown family and for a folder that
    holds something else.
    """
    if family not in _VISION:
        raise UserError(f"unknown family {family!r}, known are {', '.join(_VISION)}")
    target = Path(folder)
    if (target / "config.json").is_file():
        return target
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty and holds no model")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(family, scratch, seed)
        scratch.chmod(0o755)
        _publish(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _publish(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # else another process was faster
            raise


def _write(family: str, folder: Path, seed: int) -> None:
    transformers_logging.disable_progress_bar()
    tokenizer = _tokenizer(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(_config(family, tokenizer))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    patch = _VISION[family]["patch_size"]
    side = 2 * patch
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 4 * side * side, "longest_edge": 16 * side * side},
    )
    processor.save_pretrained(folder)


def _tokenizer(family: str) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[0],
        additional_special_tokens=list(SPECIALS),
        chat_template=_template(family),
    )


def _template(family: str) -> str:
    from trainer.vision_language.families import FAMILIES

    system = next(f.default_system for f in FAMILIES if f.name == family)
    return f"{{% set default_system = {system or ''!r} %}}{_TEMPLATE}"


def _config(family: str, tokenizer: Any) -> Any:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": _HIDDEN // 4,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "attention_dropout": 0.0,
        "initializer_range": _SPREAD,
        "rope_parameters": {"rope_type": "default"} | _ROPE[family],
    }
    vision = {
        "depth": 2,
        "num_heads": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": _SPREAD,
    } | _VISION[family]
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        initializer_range=_SPREAD,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.testing.tiny", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(_VISION), default="qwen2_5_vl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.stdout.write(f"{make_tiny(args.family, args.folder, args.seed)}\n")


if __name__ == "__main__":
    main()
