"""A trained state of a wanted size: LoRA over frozen layers, under DeepSpeed ZeRO-2 in bf16.

The trainable shapes are those of real models; the frozen weights, which no saver writes,
share one block of memory. One optimizer step fills the moments.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

BYTES_A_PARAMETER = 16
"""Master weights, two moments, and the bf16 adapter twice: for PEFT and for DeepSpeed."""

DEEPSPEED: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Linear layers with an adapter: (name, in, out) of one block, how many blocks, the rank."""

    linears: tuple[tuple[str, int, int], ...]
    blocks: int
    r: int

    @property
    def parameters(self) -> int:
        """Trainable ones."""
        return self.blocks * self.r * sum(i + o for _, i, o in self.linears)


QWEN_VL = Shape(
    (("c_attn", 4096, 12288), ("c_proj", 4096, 4096), ("w1", 4096, 11008), ("w2", 4096, 11008)),
    blocks=32,
    r=64,
)
"""The layers that Qwen-VL's own finetune.py adapts: 1.8 GB."""


def _qwen25(hidden: int, keys: int, inner: int, r: int) -> Shape:
    return Shape(
        (
            ("q_proj", hidden, hidden),
            ("k_proj", hidden, keys),
            ("v_proj", hidden, keys),
            ("o_proj", hidden, hidden),
            ("gate_proj", hidden, inner),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        ),
        blocks=28,
        r=r,
    )


NAMED = {"qwen-vl": QWEN_VL, "qwen2.5-vl-7b": _qwen25(3584, 512, 18944, 64)}
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_WIDTHS = ((30e6, 64), (300e6, 512), (float("inf"), 1024))
"""Up to so many bytes a state has layers of that width."""


def shape_of(size: str) -> Shape:
    """The shape behind a name of NAMED, or one whose state has about that size (`100MB`)."""
    if size in NAMED:
        return NAMED[size]
    parameters = float(size[:-2]) * _UNITS[size[-2:]] / BYTES_A_PARAMETER
    width = next(w for limit, w in _WIDTHS if parameters * BYTES_A_PARAMETER < limit)
    thin = _qwen25(width, width // 4, width * 11 // 4, 1)
    return _qwen25(width, width // 4, width * 11 // 4, max(1, round(parameters / thin.parameters)))


class Stack(nn.Module):
    """Frozen linear layers whose weights share memory; the loss reaches all of them."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__()
        largest = max(i * o for _, i, o in shape.linears)
        shared = torch.empty(largest, dtype=torch.bfloat16, device=device).normal_(std=0.02)
        self.blocks = nn.ModuleList(nn.ModuleDict() for _ in range(shape.blocks))
        for block in self.blocks:
            for name, width, out in shape.linears:
                layer = nn.Linear(width, out, bias=False, device="meta")
                weight = shared[: width * out].view(out, width)
                layer.weight = nn.Parameter(weight, requires_grad=False)
                block[name] = layer

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """A loss on which every layer acts."""
        total = torch.zeros((), device=x.device)
        for block in self.blocks:
            for layer in block.values():
                row = x.expand(1, layer.in_features).to(torch.bfloat16)
                total = total + layer(row).float().square().mean()
        return {"loss": total}


def make_trainer(shape: Shape, folder: Path, *, cuda: bool) -> Trainer:
    """A plain Trainer that has made one step; its engine stays alive. One rank."""
    _alone()
    torch.manual_seed(1)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=1,
        bf16=True,
        use_cpu=not cuda,
        ddp_backend=None if cuda else "gloo",
        deepspeed=DEEPSPEED,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    names = [name for name, _, _ in shape.linears]
    # Both matrices of an adapter are drawn at random, as they are after some training.
    config = LoraConfig(r=shape.r, target_modules=names, init_lora_weights=False)
    trainer = Trainer(
        model=get_peft_model(Stack(shape, args.device), config),
        args=args,
        train_dataset=[{"x": 1.0}],
        data_collator=lambda rows: {"x": torch.tensor([[row["x"]] for row in rows])},
    )
    trainer.train()
    return trainer


def _alone() -> None:
    """The environment that an agent gives the only rank of an attempt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in {**found, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        os.environ.setdefault(name, value)
