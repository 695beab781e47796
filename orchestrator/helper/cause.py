"""Why a notice came, asked of the scheduler on the node: a signal alone does not say."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.clock import Clock

CauseKind = Literal["preempted", "time-limit", "requeued", "cancelled", "signal"]
"""requeued: by an administrator, after a node failure, or preempted without any grace.
signal: by a person, or something else that Slurm keeps no record of."""
ASK_S = 5.0
WAIT_S = 3.0
_LIMIT_NEAR_S = 75.0
"""Slurm gives the notice before a time limit up to a minute early, and a little late."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What Slurm says; `seconds_left` only where it names the moment of the kill."""

    kind: CauseKind
    seconds_left: float | None = None


def read_cause(
    shown: str, *, key: str, restart_count: int, now: float, signal_s: float | None = None
) -> Cause | None:
    """From `scontrol -o show job` with times in seconds since the epoch; None if unreadable, or
    if the job is not called `key`: a Slurm that lost its state gives ids a second time.

    `signal_s`: how long before its time limit the job is told; None = unknown. Pure.
    """
    state = _field(shown, "JobState")
    if state is None or _field(shown, "JobName") != key:
        return None
    end = _number(shown, "EndTime")
    left = None if end is None else end - now
    if _number(shown, "PreemptTime") is not None:
        return Cause("preempted", left if state == "RUNNING" else None)
    if _field(shown, "Reason") == "TimeLimit":
        return Cause("time-limit")
    if state == "RUNNING":
        near = left is not None and left < (signal_s or 0.0) + _LIMIT_NEAR_S
        return Cause("time-limit", left) if near else Cause("signal")
    restarts = _number(shown, "Restarts")
    if restarts is not None and restarts > restart_count:
        return Cause("requeued")
    return Cause("cancelled") if state in ("COMPLETING", "CANCELLED") else Cause("signal")


def _field(shown: str, name: str) -> str | None:
    """The first one counts: what users may write (a comment) stands at the end."""
    found = re.search(rf"(?:^|\s){name}=(\S*)", shown)
    return found[1] if found else None


def _number(shown: str, name: str) -> float | None:
    text = _field(shown, name)
    return float(text) if text is not None and re.fullmatch(r"\d+", text) else None


class Witness:
    """Asks once, in a thread of its own, and reports what it learns."""

    def __init__(
        self,
        environ: Mapping[str, str],
        key: str,
        clock: Clock,
        report: Callable[[Cause], None],
    ) -> None:
        """`key`: what the job is called."""
        self._environ = environ
        self._key = key
        self._clock = clock
        self._report = report
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """At the first notice. The answer may never come."""
        if self._thread is None and "SLURM_JOB_ID" in self._environ:
            self._thread = threading.Thread(target=self._ask, name="cause", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Give an answer that is on its way a moment: without it, a cancel looks like a notice."""
        if self._thread is not None:
            self._thread.join(WAIT_S)

    def _ask(self) -> None:
        argv = ["scontrol", "-o", "show", "job", self._environ["SLURM_JOB_ID"]]
        try:
            done = subprocess.run(
                argv,
                env={**self._environ, "SLURM_TIME_FORMAT": "%s"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ASK_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return
        restarts = int(self._environ.get("SLURM_RESTART_COUNT", "0"))
        found = read_cause(
            done.stdout, key=self._key, restart_count=restarts, now=self._clock.now()
        )
        if found is not None:
            self._report(found)
