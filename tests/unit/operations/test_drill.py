"""What a drill proves, on events and curves made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.clock import iso
from orchestrator.contract.event import Event, StepMetrics
from orchestrator.operations.drill import Check, Side, Timeline, judge, timelines

T0 = 1_800_000_000.0


def event(at: float, kind: str, attempt: int = 1, **data: Any) -> Event:
    return Event(time=iso(T0 + at), kind=kind, writer="node-0", attempt=attempt, data=data)


def metric(at: float, step: int, attempt: int, loss: float = 0.5) -> StepMetrics:
    return StepMetrics(
        step=step, attempt=attempt, loss=loss, loss_hex=loss.hex(), learning_rate=1e-3,
        grad_norm=1.0, time=iso(T0 + at),
    )  # fmt: skip


EVENTS = (
    event(-5, "claimed"),
    event(0.1, "notice"),
    event(0.0, "notice"),
    event(1.0, "stop_agreed", step=4),
    event(1.5, "save_started", step=4),
    event(9.0, "committed", step=4),
    event(9.5, "verdict", code=75),
    event(20.0, "claimed", attempt=2),
    event(21.0, "resuming", attempt=2, step=4),
)
CURVE = tuple(metric(i - 5, i, 1) for i in range(1, 5)) + tuple(
    metric(20 + i, i, 2) for i in range(5, 9)
)
GOOD = Side(state="SUCCEEDED", attempts=2, curve=CURVE, adapter_sha256="a")
ALONE = Side(
    state="SUCCEEDED",
    attempts=1,
    curve=tuple(metric(i, i, 1) for i in range(1, 9)),
    adapter_sha256="a",
)


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.what for check in checks if not check.ok]


def test_the_seconds_count_from_the_first_notice() -> None:
    (line,) = timelines(EVENTS, CURVE)
    assert line == Timeline(
        attempt=1, step=4, agreed=1.0, saving=1.5, durable=9.0, left=9.5, requeued=20.0,
        first_step=25.0, resumed_step=4,
    )  # fmt: skip


def test_a_drill_that_held() -> None:
    checks = judge(GOOD, ALONE, timelines(EVENTS, CURVE), grace_s=60.0)
    assert failed(checks) == []
    assert any(check.detail == "needs 9.0 s, you have 60 s" for check in checks)


def test_a_notice_after_the_last_step_proves_nothing() -> None:
    last = tuple(replace(m, attempt=1) for m in CURVE)
    side = replace(GOOD, curve=last)
    events = (*without("stop_agreed", "resuming"), event(1, "stop_agreed", step=8),
              event(21, "resuming", 2, step=8))  # fmt: skip
    checks = judge(side, ALONE, timelines(events, last), grace_s=60.0)
    assert failed(checks) == ["attempt 1: the next attempt went on training"]
    assert any("give it more --steps" in check.detail for check in checks)


def without(*kinds: str) -> tuple[Event, ...]:
    return tuple(e for e in EVENTS if e.kind not in kinds)


@pytest.mark.parametrize(
    ("events", "grace", "what"),
    [
        (EVENTS, 5.0, "attempt 1: saved within the grace"),
        (without("committed"), 60.0, "attempt 1: saved within the grace"),
        ((*without("resuming"), event(21, "resuming", 2, step=3)), 60.0, "attempt 1: nothing was"),
        (without("stop_agreed"), 60.0, "attempt 1: nothing was lost"),
        (without("notice"), 60.0, "a notice arrived"),
    ],
)
def test_what_a_preemption_must_hold(events: Any, grace: float, what: str) -> None:
    found = failed(judge(GOOD, ALONE, timelines(events, CURVE), grace_s=grace))
    assert any(name.startswith(what) for name in found), found


@pytest.mark.parametrize(
    ("side", "what"),
    [
        (replace(GOOD, state="FAILED"), "the preempted run succeeded"),
        (replace(GOOD, attempts=3), "each preemption was requeued exactly once"),
        (replace(GOOD, adapter_sha256="b"), "the adapters are the same, bit for bit"),
        (replace(GOOD, adapter_sha256=None), "the adapters are the same, bit for bit"),
        (replace(GOOD, curve=CURVE[:-1]), "the losses are the same, bit for bit"),
        (
            replace(GOOD, curve=(*CURVE[:-1], metric(28, 8, 2, loss=0.5 + 1e-9))),
            "the losses are the same, bit for bit",
        ),
        (
            replace(GOOD, curve=(*CURVE[:-1], replace(CURVE[-1], learning_rate=2e-3))),
            "the learning rates are the same",
        ),
    ],
)
def test_what_the_runs_must_hold(side: Side, what: str) -> None:
    assert what in failed(judge(side, ALONE, timelines(EVENTS, CURVE), grace_s=60.0))


def test_the_undisturbed_run_must_succeed_too() -> None:
    other = replace(ALONE, state="HELD")
    found = failed(judge(GOOD, other, timelines(EVENTS, CURVE), grace_s=60.0))
    assert found == ["the undisturbed run succeeded"]


def test_two_missing_adapters_are_not_the_same() -> None:
    sides = replace(GOOD, adapter_sha256=None), replace(ALONE, adapter_sha256=None)
    found = failed(judge(*sides, timelines(EVENTS, CURVE), grace_s=60.0))
    assert found == ["the adapters are the same, bit for bit"]


@pytest.mark.parametrize(("loss", "held"), [(0.5004, True), (0.51, False)])
def test_a_tolerance(loss: float, held: bool) -> None:
    side = replace(GOOD, adapter_sha256="b", curve=(*CURVE[:-1], metric(28, 8, 2, loss=loss)))
    checks = judge(side, ALONE, timelines(EVENTS, CURVE), grace_s=60.0, tolerance=1e-3)
    assert (failed(checks) == []) is held


def test_a_save_that_was_not_needed_is_durable() -> None:
    events = (*without("committed")[:-1], event(1.2, "save_skipped"), EVENTS[-1])
    (line,) = timelines(events, CURVE)
    assert line.durable == 1.2
