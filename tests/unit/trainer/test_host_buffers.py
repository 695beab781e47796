"""Copies of a state: the same files as the state itself, and not moved by later steps."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch

from trainer.checkpoint.state import HostBuffers


def state() -> dict[str, Any]:
    """Views that share a storage, scalars, an empty tensor, nested containers."""
    flat = torch.arange(100, dtype=torch.float32)
    return {
        "module": OrderedDict(a=flat[:60].view(6, 10), b=flat[60:].view(10, 4).t()),
        "optimizer": [{"step": 3, "exp_avg": flat.clone()}, (flat, "name", None)],
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def as_file(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def plain(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "parameter": value["parameter"].detach()}


def test_the_file_of_a_copy_is_that_of_the_state() -> None:
    buffers, value = HostBuffers(), state()
    for _ in range(3):
        (copy,) = buffers.copy([value])
        assert as_file(copy) == as_file(plain(value))
        value["optimizer"][0]["exp_avg"] += 1


def test_later_steps_change_nothing() -> None:
    value = state()
    (copy,) = HostBuffers().copy([value])
    before = as_file(copy)
    value["module"]["a"].add_(1)
    value["optimizer"][0]["step"] = 4
    value["optimizer"].append("more")
    value["new"] = 1
    with torch.no_grad():
        value["parameter"].zero_()
    assert as_file(copy) == before


def test_buffers_are_used_again_and_unused_ones_given_up() -> None:
    buffers = HostBuffers()
    first = buffers.copy([{"a": torch.zeros(8), "b": torch.zeros(8), "c": torch.zeros(9)}])[0]
    second = buffers.copy([{"a": torch.ones(8)}])[0]
    assert second["a"].data_ptr() in {first["a"].data_ptr(), first["b"].data_ptr()}
    third = buffers.copy([{"a": torch.ones(8), "b": torch.ones(8)}])[0]
    assert third["a"].data_ptr() != third["b"].data_ptr()
    assert third["a"].tolist() == third["b"].tolist() == [1.0] * 8


def test_one_value_met_twice_is_one_copy() -> None:
    inner = {"t": torch.ones(2)}
    one, two = HostBuffers().copy([inner, [inner]])
    assert one is two[0]
    assert one["t"].data_ptr() != inner["t"].data_ptr()


class Scaler:
    """Changes from step to step, and is no tensor."""

    def __init__(self) -> None:
        self.scale = 2.0
        self.history = torch.ones(2)


@pytest.mark.parametrize("unchanging", [(), (Scaler,)])
def test_other_objects_are_copied_unless_they_never_change(unchanging: tuple[type, ...]) -> None:
    scaler = Scaler()
    copy = HostBuffers(unchanging).copy([{"scaler": scaler}])[0]["scaler"]
    assert (copy is scaler) == bool(unchanging)
    scaler.history += 1
    assert (copy.history.tolist() == [1.0, 1.0]) != bool(unchanging)
