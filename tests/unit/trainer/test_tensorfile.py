"""Streamed safetensors files are those that safetensors itself would write."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage.hashing import sha256
from trainer.state import tensorfile

pytestmark = pytest.mark.torch

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
NAMES = st.text("abAZ._é0", min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def file(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(bytes(block) for block in tensorfile.blocks(tensors))


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(TYPES), SHAPES), min_size=1, max_size=6))
def test_the_same_bytes(wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    tensors = {name: torch.rand(shape).to(dtype) for name, (dtype, shape) in wanted.items()}
    assert file(tensors) == safetensors.torch.save(tensors, metadata={"format": "pt"})


def test_tensors_larger_than_a_piece_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "PIECE", 7)
    whole = torch.arange(100, dtype=torch.float32)
    tensors = {"view": whole[10:40].view(5, 6), "turned": whole.view(10, 10).t(), "whole": whole}
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    data = file(tensors)
    assert data == safetensors.torch.save(copies, metadata={"format": "pt"})
    assert sha256(tensorfile.blocks(tensors)) == hashlib.sha256(data).hexdigest()


def test_tensors_may_be_stored_in_another_type() -> None:
    wide = {"a": torch.rand(3), "b": torch.rand(2, 2)}
    narrow = {**wide, "b": wide["b"].bfloat16()}
    blocks = tensorfile.blocks(wide, {"b": torch.bfloat16})
    assert b"".join(bytes(block) for block in blocks) == file(narrow)
