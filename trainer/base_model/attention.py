"""How attention is computed: chosen on the node where a run first starts, and kept."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import ContractRefused, UserError

FLASH, SDPA = "flash_attention_2", "sdpa"
_CAPABILITY = 8
"""Oldest generation of NVIDIA's that FlashAttention 2 runs on (Ampere)."""


def choose(job: ResolvedJob, device: torch.device, recorded: str | None) -> str:
    """The implementation, as transformers names it.

    recorded: what the checkpoint was made with; another one gives other bits

    Raises UserError where the job asks for one that this node has not, ContractRefused where
    the run began with one that this node has not.
    """
    wanted = job.model.attention
    if wanted != "auto":
        if wanted == FLASH and not has_flash(device):
            raise UserError(
                f"model.attention: {FLASH} needs a GPU of compute capability {_CAPABILITY}.0 and "
                "the package flash-attn, and this node does not have both",
                hint="use model.attention: auto, or sdpa",
            )
        return wanted
    if recorded is None:
        return FLASH if has_flash(device) and in_half(job) else SDPA
    if recorded == FLASH and not has_flash(device):
        raise ContractRefused(
            f"the checkpoint was made with {FLASH}, which this node does not have",
            hint="go on where it is installed, or with model.attention: sdpa in "
            "resume RUN --job JOB: the losses will differ a little",
        )
    return recorded


def has_flash(device: torch.device) -> bool:
    """Whether FlashAttention 2 runs here."""
    if device.type != "cuda" or not is_flash_attn_2_available():
        return False
    return torch.cuda.get_device_capability(device)[0] >= _CAPABILITY


def in_half(job: ResolvedJob) -> bool:
    """Whether the training computes in 16 bits: FlashAttention knows nothing else."""
    return bool(job.training.get("bf16") or job.training.get("fp16"))


def of_model(model: Any) -> str:
    """What a loaded model really uses."""
    return str(model.config._attn_implementation)
