"""Every evaluation sample counts once, and all ranks take part in as many batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from trainer.data.loaders import EvaluationSampler

pytestmark = pytest.mark.torch


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 7))
def test_parts_cover_the_data_once(samples: int, batch: int, world: int) -> None:
    parts = [EvaluationSampler(samples, batch, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    counted = [
        index
        for part in parts
        for batch_, count in zip(part, part.counts, strict=True)
        for index in batch_[:count]
    ]
    assert counted == list(range(samples))
    assert all(batch_ for part in parts for batch_ in part)
