"""What holds for every size, seed, epoch and batch plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract.plan import BatchPlan
from trainer.data.sampler import (
    RankBatchSampler,
    dropped_per_epoch,
    rank_block,
    step_indices,
    steps_per_epoch,
)

plans = st.builds(
    BatchPlan,
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 4),
)
seeds = st.integers(-(2**70), 2**70)
epochs = st.integers(0, 1000)


@given(samples=st.integers(64, 400), plan=plans, seed=seeds, epoch=epochs)
def test_an_epoch_shows_every_sample_at_most_once(
    samples: int, plan: BatchPlan, seed: int, epoch: int
) -> None:
    size = plan.global_batch
    steps = [
        step_indices(seed, epoch, step, samples, size)
        for step in range(steps_per_epoch(samples, size))
    ]
    shown = [i for step in steps for i in step]
    assert len(set(shown)) == len(shown) == samples - dropped_per_epoch(samples, size)
    assert set(shown) <= set(range(samples))


@given(samples=st.integers(64, 400), plan=plans, seed=seeds, epoch=epochs)
def test_the_ranks_together_see_each_step_in_order(
    samples: int, plan: BatchPlan, seed: int, epoch: int
) -> None:
    ranks = []
    for rank in range(plan.world_size):
        sampler = RankBatchSampler(samples, plan, rank, seed)
        sampler.set_epoch(epoch)
        ranks.append([i for batch in sampler for i in batch])
    for step in range(steps_per_epoch(samples, plan.global_batch)):
        window = slice(step * plan.rank_batch, (step + 1) * plan.rank_batch)
        together = tuple(i for shown in ranks for i in shown[window])
        assert together == step_indices(seed, epoch, step, samples, plan.global_batch)


@given(
    samples=st.integers(96, 400),
    rank_batch=st.sampled_from([4, 6, 12]),
    world=st.integers(1, 4),
    seed=seeds,
    data=st.data(),
)
def test_micro_batch_and_accumulation_never_change_what_a_rank_sees(
    samples: int, rank_batch: int, world: int, seed: int, data: st.DataObject
) -> None:
    divisors = [m for m in range(1, rank_batch + 1) if rank_batch % m == 0]
    rank = data.draw(st.integers(0, world - 1))
    orders = set()
    for micro in divisors:
        plan = BatchPlan(micro=micro, accumulation=rank_batch // micro, world_size=world)
        batches = list(RankBatchSampler(samples, plan, rank, seed))
        assert {len(batch) for batch in batches} == {micro}
        orders.add(tuple(i for batch in batches for i in batch))
    assert len(orders) == 1


@given(seed=seeds, epoch=epochs, step=st.integers(0, 9), data=st.data())
def test_a_step_needs_no_history(seed: int, epoch: int, step: int, data: st.DataObject) -> None:
    wanted = step_indices(seed, epoch, step, 120, 12)
    for _ in range(data.draw(st.integers(0, 5))):
        step_indices(data.draw(seeds), data.draw(epochs), 0, 120, 12)
    assert step_indices(seed, epoch, step, 120, 12) == wanted
    assert sum((rank_block(wanted, rank, 3) for rank in range(3)), ()) == wanted
