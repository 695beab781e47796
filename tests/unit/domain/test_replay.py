"""What a replay compares, on rows made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.contract.event import StepMetrics
from orchestrator.domain.replay import Window, choose_window, step_checks


def row(step: int, *, rank: int = 0, rate: float = 0.5, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=step, attempt=1, loss=loss, loss_hex=loss.hex(), learning_rate=rate, grad_norm=None,
        time="", samples=(2 * step + rank,), micro_losses=(loss.hex(),),
    )  # fmt: skip


def curves(*steps: int) -> dict[int, list[StepMetrics]]:
    return {rank: [row(step, rank=rank) for step in steps] for rank in (0, 1)}


def results(*args: object) -> dict[str, str]:
    return {check.name: check.result for check in step_checks(*args)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "saved", "count", "window"),
    [
        (range(1, 31), (25, 30), 10, Window(25, 30)),
        (range(1, 31), (5, 10), 4, Window(10, 14)),
        (range(1, 31), (30,), 10, Window(0, 10)),
        (range(1, 4), (), 10, Window(0, 3)),
        ((), (5,), 10, None),
    ],
)
def test_it_begins_at_the_newest_checkpoint_with_steps_after_it(
    steps: range, saved: tuple[int, ...], count: int, window: Window | None
) -> None:
    assert choose_window(list(steps), saved, count) == window


def test_equal_rows_of_all_ranks() -> None:
    found = list(step_checks(curves(1, 2, 3), curves(2, 3, 4), Window(1, 3), 0.0))
    assert [(c.name, c.result) for c in found] == [
        ("samples", "equal"), ("learning rates", "equal"), ("losses", "equal"),
    ]  # fmt: skip
    assert found[2].detail == "4 micro-batches, bit for bit"


def test_what_only_one_side_has_is_said() -> None:
    found = list(step_checks(curves(1, 2, 3), curves(2), Window(1, 3), 0.0))
    assert found[0].detail == "2 of 4 lines are on both sides"
    assert results(curves(1), curves(9), Window(8, 9), 0.0) == {"steps": "not compared"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("samples", {"samples": (99,)}),
        ("learning rates", {"learning_rate": 0.25}),
        ("losses", {"micro_losses": ((1.0 + 2**-52).hex(),)}),
        ("losses", {"micro_losses": ("nan",)}),
    ],
)
def test_each_difference_is_found_on_each_rank(
    name: str, change: dict[str, object], rank: int
) -> None:
    again = curves(1, 2, 3)
    again[rank][1] = replace(again[rank][1], **change)  # type: ignore[arg-type]
    found = results(curves(1, 2, 3), again, Window(0, 3), 0.0)
    assert found.pop(name) == "differs"
    assert set(found.values()) == {"equal"}


def test_a_loss_within_the_tolerance_is_equal() -> None:
    again = {0: [row(1, loss=1.0 + 1e-4)]}
    assert results({0: [row(1)]}, again, Window(0, 1), 1e-3)["losses"] == "equal"
    assert results({0: [row(1)]}, again, Window(0, 1), 1e-5)["losses"] == "differs"


def test_another_batch_plan_is_not_compared() -> None:
    again = {0: [replace(row(1), micro_losses=("0x1p+0", "0x1p+0"))]}
    assert results({0: [row(1)]}, again, Window(0, 1), 0.0)["losses"] == "not compared"
