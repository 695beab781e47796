"""Faults that a controller outlives: how long until the next try, and what of them is told."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress

from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.controller.run import Run
from orchestrator.errors import NoSuchRun, QvlError, Unreachable
from orchestrator.storage.protocol import NotFound

FAULTS = (QvlError, OSError, sqlite3.Error)
"""Whatever storage, backend, this machine and its registry can say no with."""
FIRST_S, LONGEST_S = 1.0, 30.0
"""Between two tries: doubled from the first, so that a fault of seconds costs seconds."""


class Backoff:
    """What stands in the way of the passes over one run."""

    def __init__(self, clock: Clock, say: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._say = say or tell
        self._words = ""
        self._tries = 0
        self._since = self._next = clock.monotonic()

    @property
    def due(self) -> bool:
        """True once it is time for the next try."""
        return self._clock.monotonic() >= self._next

    def met(self, fault: Exception) -> float:
        """A try has failed; returns the seconds until the next one. Other words than before
        are told, the same are not.
        """
        now = self._clock.monotonic()
        if not self._tries:
            self._since = now
        pause = min(FIRST_S * 2.0**self._tries, LONGEST_S)
        self._tries = min(self._tries + 1, 10)
        self._next = now + pause
        if (words := str(as_error(fault))) != self._words:
            self._words = words
            self._say(f"{iso(self._clock.now())} {words}\n  tried again until it works")
        return pause

    def over(self) -> None:
        """A try has succeeded."""
        if self._tries:
            lasted = self._clock.monotonic() - self._since
            self._say(f"{iso(self._clock.now())} goes on after {lasted:.0f} s")
        self._words, self._tries, self._next = "", 0, self._clock.monotonic()


def as_error(fault: Exception) -> QvlError:
    """One of FAULTS in the shape that commands report."""
    if isinstance(fault, QvlError):
        return fault
    where = "the registry of this machine" if isinstance(fault, sqlite3.Error) else "this machine"
    return Unreachable(f"{where}: {fault}")


def tell(words: str) -> None:
    """A line in this process's log, whose own disk may be what is full: then it is lost."""
    with suppress(OSError):
        sys.stderr.write(f"{words}\n")
        sys.stderr.flush()


def file_system(run: Run) -> int | None:
    """What the run directory lies on, to be known again; None if nothing can be said.

    A file system that is not mounted looks like one on which nobody keeps a run.
    """
    local = run.storage.local_path(layout.RESOLVED)
    if local is None:
        return 0
    try:
        return local.parent.parent.stat().st_dev
    except OSError:
        return None


def is_gone(run: Run, home: int | None) -> bool:
    """True if the storage answers and holds the run no longer.

    home: the `file_system` on which the run was seen; None = it never was
    """
    try:
        run.storage.get(layout.RESOLVED)
        return False
    except NotFound:
        if run.storage.list(layout.SUBMISSIONS):
            return False
    except FAULTS:
        return False
    try:
        run.registry.find(run.run_id)
    except NoSuchRun:
        return True
    except FAULTS:
        return False
    return home is not None and file_system(run) == home
