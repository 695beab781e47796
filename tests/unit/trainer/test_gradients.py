"""A trainable parameter that no gradient reaches ends the run with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.errors import UserError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


@pytest.fixture
def loaded(job: Callable[..., Any]) -> Any:
    import torch

    from trainer.base_model.modeling import load_model

    torch.manual_seed(1)
    target = {"r": 2, "target_modules": "llm+vision"}
    return load_model(job("qwen3_vl", lora=target), torch.device("cpu"))


@pytest.fixture
def batches(loaded: Any, job: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """One without and then those with pictures."""
    from trainer.data.dataset import ChatDataset, Collator, load_dataset

    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    pictures = load_dataset(job("qwen3_vl").data, "train", loaded.processor, None)
    text = ChatDataset(
        [{"messages": talk}], loaded.processor, media_root=pictures.media_root, max_length=None
    )
    collate = Collator(loaded.processor.pad_token_id)

    def made() -> Iterator[dict[str, Any]]:
        for item in (text[0], pictures[0], pictures[1]):
            batch = collate([item])
            del batch["sample_index"]
            yield batch

    return made()


def backward(model: Any, batch: dict[str, Any]) -> None:
    model(**batch).loss.backward()


def test_a_model_that_is_reached_trains_on(loaded: Any, batches: Iterator[Any]) -> None:
    from trainer.loop.gradients import GradientWatch

    watch = GradientWatch(loaded.model)
    for batch in batches:
        backward(loaded.model, batch)
    assert not watch._missing


def test_a_dead_language_parameter_is_named_at_once(loaded: Any, batches: Iterator[Any]) -> None:
    import torch

    from trainer.loop.gradients import GradientWatch

    layer = loaded.model.base_model.model.model.language_model.layers[1].mlp
    layer.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    GradientWatch(loaded.model)
    with pytest.raises(UserError, match=r"1 trainable .*language_model\.layers\.1\.mlp\.unused"):
        backward(loaded.model, next(batches))


def test_the_vision_tower_is_judged_by_pictures(loaded: Any, batches: Iterator[Any]) -> None:
    import torch

    from trainer.loop.gradients import GradientWatch

    visual = loaded.model.base_model.model.model.visual
    visual.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    GradientWatch(loaded.model)
    backward(loaded.model, next(batches))
    with pytest.raises(UserError, match=r"1 trainable .*visual\.unused"):
        backward(loaded.model, next(batches))
    backward(loaded.model, next(batches))  # said once


def test_without_pictures_the_vision_tower_still_has_a_gradient(
    loaded: Any, batches: Iterator[Any]
) -> None:
    """On every rank alike: DeepSpeed reduces what has one, and the ranks' sizes must be equal."""
    import torch

    from trainer.loop.gradients import GradientWatch, Reached

    visual = loaded.model.base_model.model.model.visual
    visual.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    reached, batch = Reached(loaded.model), next(batches)
    GradientWatch(loaded.model)
    loss = loaded.model(**batch).loss
    again = reached.by(loss, batch)
    assert again.item().hex() == loss.item().hex()
    again.backward()
    seen = {n: p.grad for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert [n for n, grad in seen.items() if grad is None] == []
    assert all(not grad.any() for n, grad in seen.items() if grad is not None and ".visual." in n)
    assert reached.by(loss, {"pixel_values": torch.ones(1)}) is loss
    with pytest.raises(UserError, match=r"1 trainable .*visual\.unused"):
        backward(loaded.model, next(batches))
