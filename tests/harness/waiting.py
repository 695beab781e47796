"""Tests wait for what they need to see, never for a time in which it should have come."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""For a machine with other work; a test that passes does not wait so long."""


def until(
    what: Callable[[], object],
    seconds: float = PATIENCE_S,
    *,
    pause_s: float = 0.02,
    why: Callable[[], object] = lambda: "did not come",
) -> None:
    """Ask again and again until `what` gives something true.

    pause_s: between two questions
    why: what a failure says

    Raises AssertionError after `seconds`.
    """
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(pause_s)
