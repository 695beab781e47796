"""The summary has one writer, whatever retention's thread reports meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helper.test_start_retried import Starting


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_reports_of_retention_s_thread_lose_no_update(tmp_path: Path) -> None:
    helper, link = Starting(tmp_path).session()
    helper._begin(rejoin=False)
    summary = helper._summary
    assert summary is not None
    over = threading.Event()

    def report() -> None:
        while not over.is_set():
            helper._from_retention("verified", {"step": 1, "seq": 2})

    thread = threading.Thread(target=report)
    thread.start()
    lost, before = 0, summary.now.step
    for step in range(1, 5001):
        lost += summary.now.step != before
        helper._take({"t": "progress", "rank": 0, "step": step, "total_steps": 5000})
        before = step
    over.set()
    thread.join()
    lost += summary.now.step != before
    link.close()
    helper._link.close()
    assert lost == 0
    assert not summary.now.checkpoint_verified, "not before the main thread takes the report"
    helper._take(helper._inbox.rest()[0])
    assert summary.now.checkpoint_verified
