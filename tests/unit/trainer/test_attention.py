"""How attention is computed: chosen once, kept over every resume, and never silently another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.errors import ContractRefused, UserError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]
FLASH, SDPA = "flash_attention_2", "sdpa"


@pytest.mark.parametrize(
    ("wanted", "has", "half", "recorded", "chosen"),
    [
        ("auto", True, True, None, FLASH),
        ("auto", True, False, None, SDPA),  # FlashAttention computes in 16 bits only
        ("auto", False, True, None, SDPA),
        ("auto", True, True, SDPA, SDPA),  # as the run began
        ("auto", True, True, FLASH, FLASH),
        ("auto", False, True, FLASH, ContractRefused),
        ("sdpa", True, True, FLASH, SDPA),  # the user's word
        ("eager", False, False, None, "eager"),
        (FLASH, True, True, None, FLASH),
        (FLASH, False, True, None, UserError),
    ],
)
def test_choice(
    job: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    has: bool,
    half: bool,
    recorded: str | None,
    chosen: Any,
) -> None:
    import torch

    from trainer.base_model import attention

    monkeypatch.setattr(attention, "has_flash", lambda _device: has)
    plain = job()
    asked = replace(plain, model=replace(plain.model, attention=wanted), training={"bf16": half})
    if isinstance(chosen, str):
        assert attention.choose(asked, torch.device("cpu"), recorded) == chosen
        return
    with pytest.raises(chosen, match=FLASH):
        attention.choose(asked, torch.device("cpu"), recorded)


def test_a_model_is_loaded_with_it(job: Callable[..., Any]) -> None:
    import torch

    from trainer.base_model import attention
    from trainer.base_model.modeling import load_model

    for name in (SDPA, "eager"):
        loaded = load_model(job(), torch.device("cpu"), attention=name)
        assert attention.of_model(loaded.model) == name
    assert not attention.has_flash(torch.device("cpu"))
