"""Random states of this process: python, numpy, torch on CPU and on the GPUs.

The file format is that of transformers (`rng_state_<rank>.pth`), so a plain Trainer can
resume from it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from blake3 import blake3

RngState = dict[str, Any]


def capture(*, distributed: bool) -> RngState:
    """The states now. `distributed` decides, as in transformers, if all GPUs are covered."""
    state: RngState = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        cuda = torch.cuda.random
        state["cuda"] = cuda.get_rng_state_all() if distributed else cuda.get_rng_state()
    return state


def restore(state: RngState) -> None:
    """Put the states back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    cuda = state.get("cuda")
    if isinstance(cuda, list):
        torch.cuda.random.set_rng_state_all(cuda)
    elif cuda is not None:
        torch.cuda.random.set_rng_state(cuda)


def digest(state: RngState) -> str:
    """`blake3:<hex>` of the states."""
    content = blake3(repr(state["python"]).encode())
    name, keys, *rest = state["numpy"]
    content.update(repr((name, *rest)).encode())
    content.update(np.ascontiguousarray(keys).tobytes())
    content.update(state["cpu"].numpy().tobytes())
    cuda = state.get("cuda", [])
    for device in cuda if isinstance(cuda, list) else [cuda]:
        content.update(device.cpu().numpy().tobytes())
    return f"blake3:{content.hexdigest()}"


def file_name(rank: int, world_size: int) -> str:
    """Name of the file that transformers looks for."""
    return "rng_state.pth" if world_size <= 1 else f"rng_state_{rank}.pth"
