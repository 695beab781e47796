"""One training curve out of the curves of several attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.contract.event import StepMetrics


def merge(
    attempts: Mapping[int, Iterable[StepMetrics]], starts: Mapping[int, int] | None = None
) -> list[StepMetrics]:
    """The curve as if the run had never been interrupted, by step.

    Each attempt takes over after the step that it started from (`starts`, where that is known,
    else the first that it finished): what earlier attempts have from there on was computed
    again, or given up by a person, and is cut.
    """
    curve: dict[int, StepMetrics] = {}
    for number in sorted(attempts):
        own = {line.step: line for line in attempts[number]}
        first = (starts or {}).get(number)
        if first is None:
            first = min(own) - 1 if own else None
        if first is not None:
            curve = {step: line for step, line in curve.items() if step <= first} | own
    return [curve[step] for step in sorted(curve)]
