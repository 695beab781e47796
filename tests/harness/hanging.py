"""Ways in which a rank can hang. None of them returns."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def sleeps() -> None:
    """In the interpreter."""
    while True:
        time.sleep(60.0)


def opens_a_fifo() -> None:
    """In a system call that waits for somebody else: a file system that does not answer."""
    path = Path(tempfile.mkdtemp(dir=os.environ["QVL_SCRATCH"])) / "fifo"
    os.mkfifo(path)
    path.read_bytes()


def waits_for_a_lock() -> None:
    """A deadlock of two threads."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def keeps_the_interpreter() -> None:
    """In C, with the interpreter's lock: no thread of Python gets on."""
    while True:
        ctypes.PyDLL(None).sleep(3600)


def is_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def waits_in_the_kernel() -> None:
    """State D, as with a dead disk: the parent of a vfork, whose child goes on for ever."""
    libc = ctypes.CDLL(None)
    if libc.vfork() == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            libc.pause()


WAYS: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        *(sleeps, opens_a_fifo, waits_for_a_lock),
        *(keeps_the_interpreter, is_stopped, waits_in_the_kernel),
    )
}
