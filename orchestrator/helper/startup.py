"""How long an attempt takes from its claim to its first step, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.clock import Clock
from orchestrator.contract.summary import STAGES

LAST = STAGES[-1]
"""Of rank 0."""
AT_WORK = ("training", "evaluating", "stopping")
"""Stages that are no start-up any more, as the summary calls them."""

Event = Callable[[str, dict[str, Any]], object]


class Startup:
    """Adds up stages until the first step is done: the helper's own, and those of rank 0.

    event: takes a stage of the helper's own
    change: takes the seconds of all stages so far, for the summary
    """

    def __init__(
        self, clock: Clock, event: Event, change: Callable[[dict[str, float]], object]
    ) -> None:
        self._clock = clock
        self._event = event
        self._change = change
        self._stages: dict[str, float] = {}
        self._over = False
        self.mark()

    def mark(self) -> None:
        """A stage of the helper's own begins."""
        self._since = self._clock.monotonic()

    def done(self, stage: str) -> None:
        """A stage of the helper's own has ended, and the next one begins."""
        seconds = round(self._clock.monotonic() - self._since, 4)
        self._event("stage", {"stage": stage, "seconds": seconds})
        self.count(stage, seconds)
        self.mark()

    def count(self, stage: str, seconds: float) -> None:
        """Take a stage that is told already."""
        if not self._over:
            self._stages[stage] = round(self._stages.get(stage, 0.0) + seconds, 3)
            self._change(dict(self._stages))
        self._over |= stage == LAST

    def skip(self) -> None:
        """Nothing can be said any more: the helper was restarted."""
        self._over = True
