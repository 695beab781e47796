"""summary.json: the few figures that `status` needs, written by a run's helper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = (
    *("claim", "contract", "checkpoint"),
    *("imports", "assigned", "base", "adapter", "engine", "restore", "training", "first step"),
)
"""A start-up in its order: the helper's stages, then a rank's, which begins at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """State of the newest attempt as its helper sees it; at most 10 s old while it lives."""

    run_id: str
    attempt: int
    phase: str
    """starting, training, evaluating, stopping, ended."""
    step: int
    total_steps: int
    loss: float | None
    learning_rate: float | None
    step_seconds: float | None
    """Median seconds of a step in this attempt."""
    save_seconds: float | None
    """Seconds that the last save took, from start to committed."""
    checkpoint_step: int | None
    checkpoint_time: str | None
    checkpoint_verified: bool
    preemptions: int
    lost_steps: int
    """Steps of earlier attempts that had to be computed again."""
    eta_s: float | None
    time: str
    startup: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each stage from the claim to the first step: the helper's, and rank 0's."""
    save_fault: str = ""
    """What the storage said of the newest save, if that failed."""
    save_fault_since: str = ""
    """When saves began to fail."""
    lost_exact: bool = True
    """Whether each of those attempts left word of its last step; else at least so many."""
    schema: int = 1
