"""Random weights in another shape are a model that the trainer loads like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

SMALL = {"text_config": {"num_hidden_layers": 3, "vocab_size": 512}, "vision_config": {"depth": 3}}


def test_the_model_has_the_shape_and_every_weight(
    job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from benchmarks import shapes
    from orchestrator.contract.resolved import ModelSpec
    from trainer.base_model.modeling import load_model

    monkeypatch.setattr(shapes, "FILE_BYTES", 100_000)
    folder = shapes.make_shaped(tmp_path, torch.device("cpu"), SMALL)
    assert len(list(folder.glob("*.safetensors"))) > 3
    loaded = load_model(job(model=ModelSpec(path=str(folder))), torch.device("cpu"))
    base = loaded.model.base_model.model
    assert (len(base.model.language_model.layers), len(base.model.visual.blocks)) == (3, 3)
    head = base.get_input_embeddings().weight
    assert head.shape == (512, 64)
    assert 0.5 * shapes.SPREAD < float(head.std()) < 2 * shapes.SPREAD
    norms = [p for n, p in base.named_parameters() if n.endswith("norm.weight")]
    assert norms
    assert all(bool((p == 1).all()) for p in norms)
    assert shapes.make_shaped(tmp_path, torch.device("cpu"), {}) == folder, "made once"
