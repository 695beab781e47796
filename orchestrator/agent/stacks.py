"""Where a process hangs: its own stacks, on a signal that needs no Python thread of it, and what
the kernel says of one that does not answer.

A rank has faulthandler write the stacks of all its threads at DUMP, even while a thread is stuck
in C or holds the interpreter's lock.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

DUMP = signal.SIGQUIT
_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ ")
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line \d+ in (?P<name>\S+)')
_STDLIB = re.compile(r"/lib/python3\.\d+/(?!(site|dist)-packages/)|^<frozen ")
_STATES = {
    "T": "stopped",
    "t": "stopped by a debugger",
    "D": "waits in the kernel, for a disk or a file system",
    "Z": "dead",
}


def ask(pid: int) -> bool:
    """Have a process write its stacks, if it is one that does. The signal would end another."""
    if not _handles(pid, DUMP):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, DUMP)
    return True


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, as far as they can be seen."""
    found: list[int] = []
    for task in _listed(Path(f"/proc/{pid}/task")):
        with suppress(OSError, ValueError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def place(lines: list[str]) -> str | None:
    """`in all_reduce`: the innermost function of the main thread that is no library's of Python.

    lines: what the process wrote; the main thread's stack stands last.
    """
    frames: list[re.Match[str]] = []
    for line in lines:
        if _THREAD.match(line):
            frames = []
        elif found := _FRAME.match(line):
            frames.append(found)
    own = [f for f in frames if not _STDLIB.search(f["file"])] or frames
    return f"in {own[0]['name']}" if own else None


def seen_from_outside(pid: int) -> tuple[str, list[str]]:
    """State of a process that does not answer, in words; and all that the kernel tells of it."""
    state, told = "no such process", []
    for task in _listed(Path(f"/proc/{pid}/task")):
        with suppress(OSError, ValueError):
            stat = (task / "stat").read_text()
            letter = stat[stat.rindex(")") + 2]
            if task.name == str(pid):
                state = _STATES.get(letter, "does not answer")
            told.append(f"thread {task.name}: state {letter}, in {_text(task / 'wchan') or '?'}")
            told += [f"  {line}" for line in _text(task / "stack").splitlines()]
    return state, told


def _handles(pid: int, number: int) -> bool:
    status = _text(Path(f"/proc/{pid}/status"))
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
