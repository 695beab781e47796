"""Tensors as a safetensors file, streamed: at no moment are they in memory a second time."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

PIECE = 1 << 22
"""Elements that are copied from the device at a time."""

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def blocks(
    tensors: Mapping[str, torch.Tensor], types: Mapping[str, torch.dtype] | None = None
) -> Iterator[memoryview]:
    """The file's bytes; the same that safetensors itself would write.

    types: of tensors that are stored in another type than they have

    Each block is valid until the next one.
    """
    dtypes = {name: (types or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}

    def place(name: str) -> tuple[int, bool, str]:
        """Largest types first: every tensor begins at a multiple of its own size."""
        return -dtypes[name].itemsize, dtypes[name] != torch.bfloat16, name

    order = sorted(tensors, key=place)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        for piece in pieces(tensors[name], dtypes[name]):
            yield piece.view(torch.uint8).numpy().data


def pieces(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """1-D pieces of `tensor`, of any shape, in main memory and in order; from a GPU they are read
    on a stream of their own.
    """
    flat = tensor.detach().reshape(-1)
    with _beside(flat.device) if flat.is_cuda else nullcontext():
        for start in range(0, flat.numel(), PIECE):
            yield flat[start : start + PIECE].to(dtype).cpu().contiguous()


def _beside(device: torch.device) -> Any:
    """Context of a new stream that begins after what the present one has queued."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
