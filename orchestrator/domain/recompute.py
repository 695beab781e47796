"""Which of an earlier attempt's losses this one must compute again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.contract.interrupted import Interrupted
from orchestrator.contract.jsonio import digest, to_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartPoint
from orchestrator.domain.resume import FREE


def conditions(facts: Mapping[str, Any], plan: BatchPlan) -> str:
    """Digest of all that decides what a step computes from a given state, but for the hardware."""
    binding = {
        name: value
        for name, value in facts.items()
        if not any(fnmatchcase(name, pattern) for pattern in FREE)
    }
    return digest({"facts": binding, "plan": to_json(plan)})


@dataclass(frozen=True, slots=True)
class Expected:
    """What the ranks of an attempt are to compute again."""

    records: tuple[Interrupted, ...] = ()
    skipped: str = ""
    """Why what was recorded is not compared."""


def same_state(
    attempt: int, start: StartPoint | None, point: StartPoint, log: Iterable[LogRecord]
) -> bool:
    """Whether attempt `attempt` was ever in the state that `point` is the beginning of.

    start: where that attempt began
    """
    if point.kind == "weights":
        return False
    if start is not None and start.kind == point.kind and start.commit_seq == point.commit_seq:
        return point.kind == "fresh" or point.commit_seq is not None
    return point.commit_seq is not None and any(
        r.seq == point.commit_seq and r.attempt == attempt for r in log
    )


def expect(found: Sequence[Interrupted], step: int, now: str) -> Expected:
    """From the newest attempt's `interrupted` events to what this one compares.

    found: of one attempt that was in the present state
    now: conditions of this attempt
    """
    here = tuple(r for r in found if r.step == step and r.micro_batches)
    if here and any(r.conditions != now for r in here):
        return Expected(skipped="the batch plan or something that bears on the losses has changed")
    return Expected(here)
