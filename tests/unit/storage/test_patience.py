"""How long a request is tried again, with and without a kill in sight."""

from __future__ import annotations

import math

from orchestrator.storage.patience import LAST_S, Patience


def test_without_a_kill_in_sight_the_usual_time_counts() -> None:
    patience = Patience(5.0)
    assert patience.allows(4.0, 1.0)
    assert not patience.allows(4.5, 1.0)
    assert not patience.allows(math.inf, 0.0)
    assert patience.limit_s(10.0) == 10.0
    assert patience.limit_s(None) is None


def test_the_kill_takes_the_place_of_the_usual_time() -> None:
    left = 60.0
    patience = Patience(5.0, lambda: left)
    assert patience.allows(30.0, 2.0), "there is more time than usual"
    assert patience.limit_s(10.0) == 10.0
    assert patience.limit_s(None) == 60.0 - LAST_S
    left = 3.0
    assert not patience.allows(0.0, 2.5)
    assert patience.limit_s(10.0) == 3.0 - LAST_S
    left = -4.0
    assert not patience.allows(0.0, 0.0)
    assert patience.limit_s(10.0) == 0.0
