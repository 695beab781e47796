"""A child that ends while it is being killed is still seen to end."""

from __future__ import annotations

import os
import sys
import time

from orchestrator.agent import child as children
from orchestrator.agent.identity import start_ticks


def test_a_child_that_has_just_died_is_killed_again_and_reaped() -> None:
    child = children.start("rank-0", [sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    end = time.monotonic() + 20
    while start_ticks(child.process.pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    assert [c.status for c in children.reap([child])] == [3]
    child.kill()
    child.link.close()
