"""Signals reach the board through the watcher thread; children are deaf."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trainer.process.notice import NoticeBoard

ROOT = Path(__file__).resolve().parents[3]


class Left(Exception):
    pass


def leave() -> None:
    raise Left


def test_while_loading_the_poster_leaves_and_afterwards_only_the_flag_is_set() -> None:
    board = NoticeBoard()
    with pytest.raises(Left):
        board.post("SIGTERM", 10.0, leave)
    board = NoticeBoard()
    board.enter_loop()
    board.post("SIGTERM", 10.0, leave)
    assert board.raised
    assert board.wait(0.0)
    assert board.seconds_since() >= 0.0


def test_first_reason_and_earliest_deadline_win() -> None:
    board = NoticeBoard()
    board.enter_loop()
    board.post("SIGUSR1", None, leave)
    board.post("preempt", 50.0, leave)
    first = board.notice
    board.post("SIGTERM", 80.0, leave)
    board.post("cancel", 5.0, leave)
    last = board.notice
    assert first is not None
    assert last is not None
    assert last.reason == "SIGUSR1"
    assert first.deadline is not None
    assert last.deadline is not None
    assert last.deadline < first.deadline
    assert last.seen == first.seen


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=True,
    )
    return done.stdout


def test_blocked_signals_arrive_once_the_handlers_stand_even_while_c_code_runs() -> None:
    out = run("""
        import os, signal, threading, time
        from trainer.process.notice import NOTICE_SIGNALS, watch_signals
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICE_SIGNALS)
        os.kill(os.getpid(), signal.SIGUSR1)
        seen, there = [], threading.Event()
        def note(name):
            seen.append(name)
            there.set()
        watch_signals(note)
        assert there.wait(5)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        lock = threading.Lock(); lock.acquire()
        there.clear()
        lock.acquire(timeout=0.5)
        print(seen)
    """)
    assert out.strip() == "['SIGUSR1', 'SIGTERM']"


def test_forked_child_ignores_the_signals_and_does_not_tell_its_parent() -> None:
    out = run("""
        import os, signal, time
        from trainer.process.notice import watch_signals
        seen = []
        watch_signals(seen.append)
        child = os.fork()
        if child == 0:
            time.sleep(1.0)
            os._exit(7)
        time.sleep(0.2)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(child, number)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen)
    """)
    assert out.strip() == "7 []"
