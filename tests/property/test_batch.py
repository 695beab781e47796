"""Plans keep the global batch, and shrink to their floor in finitely many steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract.plan import BatchPlan
from orchestrator.domain.batch import at_floor, plan_in_force, step_down

PLANS = st.builds(
    BatchPlan,
    micro=st.integers(1, 200),
    accumulation=st.integers(1, 40),
    world_size=st.integers(1, 64),
)


@given(PLANS)
def test_a_step_down_keeps_the_batch_and_takes_the_next_divisor(plan: BatchPlan) -> None:
    smaller = step_down(plan)
    assert (smaller.rank_batch, smaller.global_batch) == (plan.rank_batch, plan.global_batch)
    assert smaller.world_size == plan.world_size
    if at_floor(plan):
        assert smaller == plan
        return
    assert smaller.micro < plan.micro
    between = range(smaller.micro + 1, plan.micro)
    assert all(plan.rank_batch % m for m in between)


@given(PLANS)
def test_the_floor_is_reached(plan: BatchPlan) -> None:
    steps = 0
    while not at_floor(plan):
        plan = step_down(plan)
        steps += 1
        assert steps <= 200
    assert plan.micro == 1


@given(PLANS, st.integers(0, 12), st.data())
def test_the_plan_in_force(submitted: BatchPlan, ooms: int, data: st.DataObject) -> None:
    saved = data.draw(st.none() | st.just(step_down(submitted)))
    found = plan_in_force(submitted, saved, ooms)
    assert found.plan.global_batch == submitted.global_batch
    expected = saved or submitted
    for _ in range(ooms):
        expected = step_down(expected)
    assert found.plan == expected
    if ooms:
        assert found.reason == f"out of memory in {ooms} attempt(s)"
    assert plan_in_force(submitted, saved, ooms, reset=True).plan == submitted
    # adding one step at a time is the same as all at once
    if ooms:
        assert step_down(plan_in_force(submitted, saved, ooms - 1).plan) == found.plan


def test_words() -> None:
    plan = BatchPlan(micro=4, accumulation=3, world_size=2)
    small = BatchPlan(micro=3, accumulation=4, world_size=2)
    assert step_down(plan) == small
    assert plan_in_force(plan, None, 0).reason == "submitted"
    assert plan_in_force(plan, plan, 0).reason == "submitted"
    assert plan_in_force(plan, small, 0).reason == "checkpoint"
    assert plan_in_force(plan, small, 3, reset=True).reason == "reset by the user"
    assert (plan.rank_batch, plan.global_batch) == (12, 24)
