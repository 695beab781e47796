"""The way out of a rank: its last words come first, and a way out that hangs is ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from orchestrator.contract import env
from orchestrator.contract.wire import LineBuffer

ROOT = Path(__file__).resolve().parents[3]
HUNG = """
import time
from trainer.process import rank

class Work:
    def prepare(self, _): pass
    def train(self, *_): raise AssertionError
    def close(self): time.sleep(60)

rank.WAY_OUT_LIMIT_S = 0.3
rank.Rank.wait_assignment = lambda self: exhausted()

def exhausted():
    raise MemoryError("no memory left")

rank.run(Work())
"""


def test_a_way_out_that_hangs_changes_no_verdict() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", HUNG],
        env={**os.environ, "PYTHONPATH": str(ROOT), env.AGENT_FD: str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    buffer, messages = LineBuffer(), []
    with ours:
        ours.settimeout(20.0)
        while data := ours.recv(1 << 16):
            messages += buffer.feed(data)
    assert process.wait(20.0) == -signal.SIGALRM
    endings = [m for m in messages if m["t"] == "ending"]
    assert [(m["code"], m["reason"]) for m in endings] == [(77, "oom")]
