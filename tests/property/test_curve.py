"""Merging curves: what remains is what an undisturbed run would have written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract.event import StepMetrics
from orchestrator.domain.curve import merge

# One attempt: how far the run is sent back before it, and how many steps it finishes.
ATTEMPTS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=8)


def line(step: int, attempt: int) -> StepMetrics:
    return StepMetrics(
        step=step,
        attempt=attempt,
        loss=float(step),
        loss_hex=float(step).hex(),
        learning_rate=1e-3,
        grad_norm=None,
        time="2026-01-01T00:00:00.000Z",
    )


def play(plan: list[tuple[int, int]]) -> tuple[dict[int, list[StepMetrics]], dict[int, int]]:
    """What each attempt writes, and which attempt last computed each step of the run."""
    written: dict[int, list[StepMetrics]] = {}
    owner: dict[int, int] = {}
    for attempt, (back, count) in enumerate(plan, 1):
        start = max(0, len(owner) - back)
        steps = range(start + 1, start + 1 + count)
        written[attempt] = [line(step, attempt) for step in steps]
        if count:
            owner = {step: a for step, a in owner.items() if step <= start}
            owner |= dict.fromkeys(steps, attempt)
    return written, owner


@given(ATTEMPTS)
def test_the_curve_is_that_of_the_run(plan: list[tuple[int, int]]) -> None:
    written, owner = play(plan)
    assert {m.step: m.attempt for m in merge(written)} == owner


@given(ATTEMPTS)
def test_steps_rise_by_one_and_never_repeat(plan: list[tuple[int, int]]) -> None:
    steps = [m.step for m in merge(play(plan)[0])]
    assert steps == list(range(1, len(steps) + 1))


@given(ATTEMPTS, st.randoms(use_true_random=False))
def test_the_order_of_attempts_and_lines_does_not_matter(plan, random) -> None:  # type: ignore[no-untyped-def]
    written, _ = play(plan)
    numbers = random.sample(list(written), len(written))
    shuffled = {n: random.sample(written[n], len(written[n])) for n in numbers}
    assert merge(shuffled) == merge(written)


@given(ATTEMPTS)
def test_merging_what_was_merged_changes_nothing(plan: list[tuple[int, int]]) -> None:
    once = merge(play(plan)[0])
    by_attempt = {a: [m for m in once if m.attempt == a] for a in {m.attempt for m in once}}
    assert merge(by_attempt) == once


def test_an_attempt_takes_over_where_it_started_even_before_its_first_step() -> None:
    first = [line(step, 1) for step in (1, 2, 3)]
    assert [m.step for m in merge({1: first, 2: []}, {1: 0, 2: 1})] == [1]
    again = merge({1: first, 2: [line(3, 2)]}, {2: 1})
    assert [(m.step, m.attempt) for m in again] == [(1, 1), (3, 2)], "a lost line is no old one"


def test_nothing_gives_nothing() -> None:
    assert merge({}) == []
    assert merge({1: [], 2: iter(())}) == []
