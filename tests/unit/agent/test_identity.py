"""A process is named for ever: its pid alone is used again."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.identity import process_id, send_signal
from orchestrator.backends.base import JobRef
from orchestrator.backends.local.backend import LocalBackend
from orchestrator.errors import UserError


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


def earlier(process: subprocess.Popen[bytes]) -> str:
    """The name of a process that had this pid before."""
    pid, ticks, boot = str(process_id(process.pid)).split("-")
    return f"{pid}-{int(ticks) - 1}-{boot}"


def test_only_the_process_of_that_name_is_signalled(process: subprocess.Popen[bytes]) -> None:
    assert not send_signal(earlier(process), signal.SIGKILL)
    for other in ("", "x", f"{process.pid}", "0-1-2", "4000000-1-2"):
        assert not send_signal(other, signal.SIGKILL)
    assert process.poll() is None
    assert send_signal(str(process_id(process.pid)), signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert not send_signal(str(process_id(process.pid)), signal.SIGKILL)


def test_neither_cancel_nor_notice_reaches_a_later_process_of_that_pid(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    backend = LocalBackend(tmp_path)
    job = JobRef(earlier(process), "run-1")
    backend.cancel(job)
    with pytest.raises(UserError, match="has ended"):
        backend.notify(job, "SIGKILL", None)
    assert process.poll() is None


def test_a_rank_is_named_as_exactly(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """Its agent lives; the rank has ended, and its pid is another process's."""
    backend = LocalBackend(tmp_path)
    agent = str(process_id(process.pid))
    (tmp_path / "agents").mkdir()
    state = tmp_path / "agents" / f"{agent}.json"
    state.write_text(json.dumps({"state": "running", "ranks": [earlier(process)]}))
    for rank in (0, 1, -1):
        with pytest.raises(UserError, match=f"has no rank {rank}"):
            backend.notify(JobRef(agent, "run-1"), "SIGKILL", rank)
    assert process.poll() is None
    state.write_text(json.dumps({"state": "running", "ranks": [agent]}))
    backend.notify(JobRef(agent, "run-1"), "SIGKILL", 0)
    assert process.wait(10) == -signal.SIGKILL
