"""Notices: signals to this rank and stop requests of its agent.

Signals are seen by a watcher thread through the wakeup descriptor, so a main thread that
is stuck in C (an import, a collective) does not delay them.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

NOTICE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED_BY_WORKERS = (*NOTICE_SIGNALS, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Notice:
    """A request to stop; times are monotonic seconds."""

    reason: str
    """Name of the signal, or the agent's reason."""
    seen: float
    deadline: float | None
    """When the process will be killed; None = not known here."""


class NoticeBoard:
    """The stop request in force, and who may act on it.

    While the rank is loading, the thread that posts a notice ends the process by itself;
    after `enter_loop` only the votes of the training loop act. The lock makes that switch
    free of races: a notice is either posted before it and ends the process, or voted on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading = True
        self._notice: Notice | None = None
        self._raised = threading.Event()

    @property
    def notice(self) -> Notice | None:
        """The notice in force: first reason, earliest deadline."""
        return self._notice

    @property
    def raised(self) -> bool:
        return self._raised.is_set()

    def seconds_since(self) -> float:
        """Seconds since the first notice; 0 if there is none."""
        return 0.0 if self._notice is None else time.monotonic() - self._notice.seen

    def seconds_left(self) -> float:
        """Seconds until the process is killed; infinite where that is not known."""
        if self._notice is None or self._notice.deadline is None:
            return math.inf
        return self._notice.deadline - time.monotonic()

    def wait(self, seconds: float) -> bool:
        """True once there is a notice; waits at most `seconds`."""
        return self._raised.wait(seconds)

    def post(self, reason: str, seconds_left: float | None, leave: Callable[[], None]) -> None:
        """Take a notice; calls `leave`, which does not return, while the rank is loading."""
        now = time.monotonic()
        deadline = None if seconds_left is None else now + seconds_left
        with self._lock:
            old = self._notice
            if old is None:
                self._notice = Notice(reason, now, deadline)
            elif deadline is not None and (old.deadline is None or deadline < old.deadline):
                self._notice = Notice(old.reason, old.seen, deadline)
            self._raised.set()
            if self._loading:
                leave()

    def enter_loop(self) -> None:
        """From now on a notice only sets the flag."""
        if self._loading:
            with self._lock:
                self._loading = False


def watch_signals(on_signal: Callable[[str], None]) -> None:
    """Route the notice signals to `on_signal` (called in a thread) and unblock them.

    To be called once, by the main thread. Forked children ignore the signals.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in NOTICE_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shield_children()
    threading.Thread(target=_watch, args=(read, on_signal), name="qvl-signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTICE_SIGNALS)


def _watch(read: int, on_signal: Callable[[str], None]) -> None:
    while data := os.read(read, 256):
        for number in data:
            if number in NOTICE_SIGNALS:
                on_signal(signal.Signals(number).name)


def _shield_children() -> None:
    """A forked child shares the wakeup pipe: without this its signals would become ours.

    Between the fork and its own first line the child still has our handlers, and a signal to the
    whole process group arrives then too. So the notice signals are blocked over the fork, in the
    forking thread alone (each thread has a mask of its own, hence the thread-local), and pending
    ones meet a child that ignores them. Nothing here takes a lock: one that another thread held
    at the fork would stay locked in the child for ever.
    """
    masks = threading.local()

    def before() -> None:
        masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICE_SIGNALS)

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)

    def in_child() -> None:
        ignore_in_worker()
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def ignore_in_worker() -> None:
    """Make a helper process of this rank deaf to the notice signals and to Ctrl-C."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in _IGNORED_BY_WORKERS:
            signal.signal(number, signal.SIG_IGN)
