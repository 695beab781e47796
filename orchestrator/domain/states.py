"""States of a run, derived from facts; only reasons are stored.

QUEUED ─> STARTING ─> RUNNING ─> STOPPING ─> REQUEUED ─> STARTING ...
   │          │          │           │           │
   └──────────┴──────────┴───────────┴───────────┴─> HELD | SUCCEEDED | FAILED
CANCELLING ─> CANCELLED     UNKNOWN: the backend cannot be asked
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator.domain.decide import Cancel, Decision, Fail, Finish, Hold
from orchestrator.domain.facts import RunFacts


class State(StrEnum):
    """What `status` shows; SUCCEEDED, FAILED and CANCELLED are final."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    REQUEUED = "REQUEUED"
    CANCELLING = "CANCELLING"
    UNKNOWN = "UNKNOWN"
    HELD = "HELD"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


def state_of(facts: RunFacts, decision: Decision, phase: str | None) -> State:
    """The state; `phase` is the newest attempt's own word (summary.json), if any."""
    match decision:
        case Finish():
            return State.SUCCEEDED
        case Cancel():
            return State.CANCELLED
        case Hold():
            return State.HELD
        case Fail():
            return State.FAILED
    if facts.tombstone:
        return State.CANCELLING
    if facts.backend == "unknown":
        return State.UNKNOWN
    if facts.backend != "running":
        return State.REQUEUED if facts.attempts else State.QUEUED
    return _running(facts, phase)


def _running(facts: RunFacts, phase: str | None) -> State:
    last = facts.last
    if last is None or last.submission < facts.newest_submission:
        if phase == "queued":
            return State.QUEUED
        return State.STARTING
    if last.verdict is not None or last.stopping or phase == "stopping":
        return State.STOPPING
    return State.RUNNING if phase in ("training", "evaluating") else State.STARTING
