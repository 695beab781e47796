"""Exit codes of the processes of a job (agent and trainer ranks)."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a process of an attempt, or the attempt as a whole, ended.

    Any other number is a crash.
    """

    DONE = 0
    """The run is finished."""
    STORAGE = 74
    """The run storage took no writes for longer than the run may go on unsaved (EX_IOERR)."""
    PREEMPTED = 75
    """A notice came and new progress was committed (EX_TEMPFAIL)."""
    PREEMPTED_NOTHING_NEW = 76
    """A notice came; nothing new to commit, or no time for it."""
    OUT_OF_MEMORY = 77
    """A rank ran out of memory."""
    REFUSED = 78
    """The user's or the site's mistake; trying again changes nothing (EX_CONFIG)."""
    NOT_OWNER = 79
    """Fenced by a later attempt, or the slot is taken."""


PREEMPTIONS = (ExitCode.PREEMPTED, ExitCode.PREEMPTED_NOTHING_NEW)
PEERS = "peers"
"""Reason of an agent that left because others of its job did not come."""
CRASH = 1
"""Stands for every exit code that has no meaning of its own."""


def normalize(code: int) -> int:
    """Map an exit status (negative = killed by that signal) to an `ExitCode` or CRASH."""
    return code if code in ExitCode._value2member_map_ else CRASH
