"""The tiny model and the poisoned data sets, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.data.poison import Poisoned, poisoned


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.testing.tiny import make_tiny

    return make_tiny("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session", params=["conversations", "messages"])
def poison(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    return poisoned(tmp_path_factory.mktemp(request.param), request.param)
