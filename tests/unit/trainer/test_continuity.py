"""A rank that must compute again what an earlier attempt has told, and a loader that must not
begin elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.contract.interrupted import Interrupted, MicroBatch, read_interrupted
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import ContractRefused
from trainer.data.sampler import RankBatchSampler
from trainer.loop.continuity import Continuity

TOLD = Interrupted(
    attempt=3,
    rank=1,
    step=6,
    micro_batches=(
        MicroBatch(samples=(1, 2), loss=(1.5).hex()),
        MicroBatch(samples=(3, 4), loss=(2.5).hex()),
    ),
    conditions="c",
)


class ToldRank:
    """A rank that keeps its events."""

    number = 1

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))


def made(*records: Interrupted, tolerance: float = 0.0) -> tuple[Continuity, ToldRank]:
    rank = ToldRank()
    assignment: Any = SimpleNamespace(
        attempt=4,
        conditions="c",
        start=StartPoint(kind="checkpoint", step=6, commit_seq=9),
        expected=records,
    )
    return Continuity(rank, assignment, tolerance), rank  # type: ignore[arg-type]


def test_the_same_losses_are_told_once() -> None:
    continuity, rank = made(TOLD)
    assert [continuity.waits(6, i) for i in (0, 1, 2)] == [True, True, False]
    assert not continuity.waits(7, 0)
    continuity.check(6, 0, [1, 2], 1.5)
    assert rank.events == []
    continuity.check(6, 1, [3, 4], 2.5)
    continuity.check(6, 2, [5, 6], 99.0)
    continuity.check(7, 0, [7, 8], 99.0)
    expected = {"step": 6, "of_attempt": 3, "micro_batches": 2, "apart": 0.0, "tolerance": 0.0}
    assert rank.events == [("reproduced", expected)]


@pytest.mark.parametrize(
    ("samples", "loss", "words"),
    [
        ([1, 2], 1.5000001, "of micro-batch 1 of step 7 on rank 1, the loss is 1.5000001"),
        ([2, 1], 1.5, r"the samples are \[2, 1\], they were \[1, 2\]"),
    ],
)
def test_another_course_is_refused(samples: list[int], loss: float, words: str) -> None:
    continuity, rank = made(TOLD)
    with pytest.raises(ContractRefused, match=words) as caught:
        continuity.check(6, 0, samples, loss)
    assert "attempt 3" in caught.value.message
    assert "--allow-change losses" in str(caught.value)
    assert rank.events == []


def test_within_the_tolerance() -> None:
    continuity, rank = made(TOLD, tolerance=0.01)
    continuity.check(6, 0, [1, 2], 1.51)
    continuity.check(6, 1, [3, 4], 2.5)
    ((kind, data),) = rank.events
    assert kind == "reproduced"
    assert data["apart"] == pytest.approx(0.01 / 1.51)


def test_another_ranks_losses_are_not_ours() -> None:
    continuity, rank = made(Interrupted(**{**_fields(TOLD), "rank": 0}))
    continuity.check(6, 0, [9, 9], 99.0)
    assert rank.events == []


def test_what_a_stop_gives_up_is_told() -> None:
    continuity, rank = made()
    continuity.interrupted(8, [])
    assert rank.events == []
    continuity.interrupted(8, TOLD.micro_batches)
    ((kind, data),) = rank.events
    assert kind == "interrupted"
    told = read_interrupted({**data, "micro_batches": list(data["micro_batches"])})
    assert told == Interrupted(**{**_fields(TOLD), "attempt": 4, "step": 8})


def _fields(record: Interrupted) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_the_loader_begins_where_the_order_says(step: int) -> None:
    """Three steps an epoch; the second epoch has another order."""
    from trainer.checkpoint.restore import check_order

    plan = BatchPlan(micro=2, accumulation=2, world_size=2)
    sampler = RankBatchSampler(26, plan, 1, seed=7)
    sampler.set_epoch(step // sampler.steps)
    batches = list(sampler)
    first = plan.accumulation * (step % sampler.steps)
    right = [i for batch in batches[first : first + 2] for i in batch]
    check_order(right, sampler, step)
    check_order(right[:2], sampler, step)  # a fetch that a notice has cut short
    check_order([], sampler, step)
    for wrong in (right[2:] + right[:2], right[1:], [*right[:-1], right[-1] + 1]):
        with pytest.raises(ContractRefused, match=f"samples of step {step + 1} on rank 1: the"):
            check_order(wrong, sampler, step)
