"""Which losses an attempt must compute again, and what counts as the same ones."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.contract.interrupted import (
    GPU_TOLERANCE,
    Interrupted,
    MicroBatch,
    apart,
    difference,
    loss_tolerance,
    read_interrupted,
)
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartPoint
from orchestrator.domain.recompute import Expected, conditions, expect, same_state

PLAN = BatchPlan(micro=2, accumulation=3, world_size=2)
MICRO = MicroBatch(samples=(4, 7), loss=(1.5).hex())
FACTS = {
    "config.lora.r": 8,
    "config.training.logging_steps": 3,
    "data.train": "d",
    "world.nodes": 1,
}


def told(step: int = 6, rank: int = 0, under: str = "now", **changes: Any) -> Interrupted:
    fields = {"attempt": 1, "rank": rank, "step": step, "micro_batches": (MICRO,)} | changes
    return Interrupted(conditions=under, **fields)


def test_conditions_hold_what_decides_the_losses() -> None:
    same = conditions(FACTS, PLAN)
    assert conditions({**FACTS, "config.training.logging_steps": 9}, PLAN) == same
    for name in ("config.lora.r", "data.train", "world.nodes", "version.torch"):
        assert conditions({**FACTS, name: "other"}, PLAN) != same
    assert conditions(FACTS, BatchPlan(micro=1, accumulation=6, world_size=2)) != same


def test_what_is_expected() -> None:
    records = [told(rank=0), told(rank=1), told(step=5)]
    assert expect(records, 6, "now") == Expected((records[0], records[1]))
    assert expect([told(micro_batches=())], 6, "now") == Expected()
    skipped = expect([told(rank=0), told(rank=1, under="then")], 6, "now")
    assert skipped.records == ()
    assert "batch plan" in skipped.skipped
    assert expect([told(step=5, under="then")], 6, "now") == Expected()


def commit(seq: int, attempt: int) -> LogRecord:
    return LogRecord(seq=seq, kind="commit", attempt=attempt, token="", prev="", time="")


@pytest.mark.parametrize(
    ("attempt", "start", "point", "same"),
    [
        (1, ("fresh", None), ("checkpoint", 3), True),  # committed it
        (2, ("checkpoint", 3), ("checkpoint", 3), True),  # began with it
        (2, ("checkpoint", 2), ("checkpoint", 3), False),
        (2, None, ("checkpoint", 3), False),
        (1, ("fresh", None), ("fresh", None), True),
        (2, ("checkpoint", 3), ("fresh", None), False),
        (2, None, ("fresh", None), False),
        (1, ("weights", None), ("weights", None), False),
        (2, ("checkpoint", None), ("checkpoint", None), False),  # of another run: not known
    ],
)
def test_same_state(
    attempt: int, start: tuple[Any, Any] | None, point: tuple[Any, Any], *, same: bool
) -> None:
    def at(place: tuple[Any, Any]) -> StartPoint:
        return StartPoint(kind=place[0], step=6, commit_seq=place[1])

    log = [commit(3, attempt=1)]
    assert same_state(attempt, at(start) if start else None, at(point), log) is same


def test_losses_are_equal_to_the_bit_or_within_the_tolerance() -> None:
    near = math.nextafter(1.5, 2)
    assert difference(MICRO, [4, 7], (1.5).hex(), 0.0) is None
    assert difference(MICRO, [4, 7], near.hex(), GPU_TOLERANCE) is None
    bits = difference(MICRO, [4, 7], near.hex(), 0.0)
    assert bits is not None
    assert bits.startswith("loss is 1.5000000000000002, it was 1.5 (")
    far = difference(MICRO, [4, 7], (1.6).hex(), GPU_TOLERANCE)
    assert far is not None
    assert "the tolerance is 0.01" in far
    order = difference(MICRO, [7, 4], (1.5).hex(), 1.0)
    assert order == "samples are [7, 4], they were [4, 7]"


@pytest.mark.parametrize(
    ("first", "second", "far"),
    [
        ("nan", "nan", 0.0),
        ("nan", "0x1p+0", math.inf),
        ("inf", "-inf", math.inf),
        ("inf", "inf", 0.0),
    ],
)
def test_losses_that_are_no_numbers(first: str, second: str, far: float) -> None:
    assert apart(first, second) == apart(second, first) == far
    assert apart("0x0p+0", "-0x0p+0") == 0.0


def test_tolerance_and_shape() -> None:
    assert (loss_tolerance("cpu"), loss_tolerance("cuda")) == (0.0, GPU_TOLERANCE)
    assert read_interrupted(to_json(told())) == told()
    assert read_interrupted({"step": "six"}) is None
    assert read_interrupted(None) is None
