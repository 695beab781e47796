"""Stdin, stdout and stderr as a shell may hand them over: closed, full, in a poor encoding."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from orchestrator.errors import StorageError


def prepare() -> None:
    """Make all three usable.

    A closed one becomes /dev/null: the next file that is opened would otherwise take its number,
    and what is printed would go there. What an encoding lacks is shown escaped, instead of ending
    the command.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _reopen(number)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _reopen(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        found = os.open(os.devnull, os.O_RDWR)
        if found != number:
            os.dup2(found, number)
            os.close(found)


def fault_of_stdout() -> StorageError | None:
    """Why what was printed cannot be written, if that is so."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as fault:
        return lost(fault)
    return None


def lost(fault: OSError) -> StorageError:
    """The error for output that cannot be written; the rest of it is given up."""
    give_up_stdout()
    return StorageError(f"the output cannot be written: {fault.strerror or fault}")


def give_up_stdout() -> None:
    """Send what is left to /dev/null, so that the interpreter does not fail over it at its end."""
    with suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
