"""What a save asks but once stays true while the state goes on."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import nn

from trainer.checkpoint.engine import _ModuleState
from trainer.checkpoint.state import Adapter

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


def adapted() -> Any:
    base = nn.Sequential(OrderedDict(one=nn.Linear(8, 8), two=nn.Linear(8, 4)))
    base.register_buffer("counter", torch.zeros(1))
    config = LoraConfig(r=2, target_modules=["one", "two"], init_lora_weights=False)
    return get_peft_model(base, config)


def go_on(model: Any) -> None:
    """As an optimizer writes in place, and as an engine puts other memory under a parameter."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        if number % 2:
            parameter.data.add_(1)
        else:
            parameter.data = (parameter.data + 2).bfloat16()


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name])
        for name, tensor in found.items()
    )


def test_the_adapter_is_what_peft_would_save() -> None:
    model = adapted()
    adapter = Adapter(model)
    for _ in range(3):
        assert same(
            adapter.tensors(), get_peft_model_state_dict(model, save_embedding_layers=False)
        )
        go_on(model)


class Engine:
    """What `_ModuleState` needs of DeepSpeed's."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.asked = 0

    def module_state_dict(self, exclude_frozen_parameters: bool = False) -> Any:
        self.asked += 1
        frozen = {n for n, p in self.module.named_parameters() if not p.requires_grad}
        state = {n: t for n, t in self.module.state_dict().items() if n not in frozen}
        state["one.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(1)
        state["one.weight.absmax"] = torch.zeros(1)
        return state


def test_the_model_is_saved_without_the_frozen_part_and_as_it_is_now() -> None:
    model = adapted()
    engine = Engine(model)
    ask = _ModuleState(engine)
    names = [n for n in model.state_dict() if "lora_" in n or "counter" in n]
    for _ in range(3):
        state = model.state_dict()
        assert same(ask(exclude_frozen_parameters=True), {name: state[name] for name in names})
        go_on(model)
    assert engine.asked == 1
