"""How long requests to a store are tried again: as usual, or until this process is killed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LAST_S = 1.0
"""Seconds before the kill that are left for saying what has failed."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds of trying again, and of waiting for one try.

    usual_s: while nobody wants to end this process
    seconds_left: until it is killed; infinite while that is not known
    """

    usual_s: float
    seconds_left: Callable[[], float] = lambda: math.inf

    def limit_s(self, wanted_s: float | None) -> float | None:
        """How long one try may take that would have `wanted_s` (None = no limit)."""
        left = self._left()
        if left is None:
            return wanted_s
        return left if wanted_s is None else min(wanted_s, left)

    def allows(self, spent_s: float, pause_s: float) -> bool:
        """True if another try may begin after a pause, `spent_s` after the first began."""
        left = self._left()
        return spent_s + pause_s <= self.usual_s if left is None else pause_s < left

    def _left(self) -> float | None:
        left = self.seconds_left()
        return None if math.isinf(left) else max(0.0, left - LAST_S)
