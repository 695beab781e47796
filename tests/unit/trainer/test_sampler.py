"""Data order: golden values, limits and speed."""

from __future__ import annotations

import time

import pytest

from orchestrator.contract.plan import BatchPlan
from orchestrator.errors import UserError
from trainer.data import sampler
from trainer.data.sampler import (
    RankBatchSampler,
    dropped_per_epoch,
    micro_batches,
    rank_block,
    step_indices,
    steps_per_epoch,
)


def test_the_keys_are_splitmix64_as_published() -> None:
    assert sampler._splitmix64(1234567, 3).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_the_order_never_changes() -> None:
    assert step_indices(7, 0, 0, 10, 10) == (3, 5, 6, 9, 7, 4, 1, 8, 2, 0)
    assert step_indices(7, 1, 0, 10, 10) == (3, 7, 1, 6, 4, 0, 9, 5, 8, 2)
    assert step_indices(7, 3, 20, 1000, 6) == (141, 364, 518, 837, 313, 797)


def test_an_incomplete_last_batch_is_dropped_and_counted() -> None:
    assert steps_per_epoch(100, 12) == 8
    assert dropped_per_epoch(100, 12) == 4
    assert dropped_per_epoch(96, 12) == 0


def test_which_samples_are_dropped_differs_by_epoch() -> None:
    def dropped(epoch: int) -> set[int]:
        seen = {i for step in range(8) for i in step_indices(1, epoch, step, 100, 12)}
        return set(range(100)) - seen

    assert dropped(0) != dropped(1)


def test_too_few_samples_name_the_numbers_and_the_cure() -> None:
    with pytest.raises(UserError, match=r"5 samples.* takes 12") as caught:
        RankBatchSampler(5, BatchPlan(micro=2, accumulation=3, world_size=2), 0, 7)
    assert "per_device_train_batch_size" in str(caught.value.hint)


def test_an_epoch_ends_where_it_ends() -> None:
    with pytest.raises(IndexError, match="step 8 of an epoch of 8"):
        step_indices(1, 0, 8, 100, 12)
    with pytest.raises(UserError, match="at least 1"):
        steps_per_epoch(5, 0)


@pytest.mark.parametrize(("rank", "world"), [(0, 3), (2, 2), (-1, 2)])
def test_blocks_must_be_equal_and_ranks_inside(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of {world}"):
        rank_block((1, 2, 3, 4), rank, world)


def test_micro_batches_must_divide() -> None:
    assert micro_batches((1, 2, 3, 4), 2) == [(1, 2), (3, 4)]
    with pytest.raises(ValueError, match="4 samples"):
        micro_batches((1, 2, 3, 4), 3)


def test_the_batch_sampler_follows_the_epoch() -> None:
    plan = BatchPlan(micro=2, accumulation=3, world_size=2)
    batches = RankBatchSampler(50, plan, 1, 7)
    assert len(batches) == len(list(batches)) == 4 * 3
    batches.set_epoch(1)
    later = [i for batch in batches for i in batch]
    assert later[:6] == list(rank_block(step_indices(7, 1, 0, 50, 12), 1, 2))


def test_a_million_samples_take_a_moment() -> None:
    before = time.process_time()
    step_indices(1, 0, 0, 1_000_000, 64)
    assert time.process_time() - before < 2
    before = time.process_time()
    for step in range(1000):
        step_indices(1, 0, step, 1_000_000, 64)
    assert time.process_time() - before < 1
