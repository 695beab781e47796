"""Who this agent is to its backend: job id, restart count, node number."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contract import env as names


@dataclass(frozen=True, slots=True)
class Identity:
    """What an agent claims with. `slot` is None where the first free number is taken."""

    backend_id: str
    restart_count: int
    slot: int | None
    host: str


def boot_id() -> str:
    """Identifies this boot of the kernel (first 8 digits are enough to tell two apart)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:8]


def start_ticks(pid: int, *, ended: bool = False) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none.

    ended: a child that has ended and was not reaped yet counts too.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") and not ended else int(fields[19])


def process_id(pid: int, *, ended: bool = False) -> str | None:
    """`<pid>-<start ticks>-<boot>`: names one process for ever; None as in `start_ticks`."""
    ticks = start_ticks(pid, ended=ended)
    return None if ticks is None else f"{pid}-{ticks}-{boot_id()}"


def pid_of(identifier: str) -> int | None:
    """The pid behind a `process_id`, if exactly that process lives now."""
    pid = identifier.split("-", 1)[0]
    if not pid.isdecimal() or process_id(int(pid)) != identifier:
        return None
    return int(pid)


def send_signal(identifier: str, number: int) -> bool:
    """Signal the process of that `process_id`, and no later one of the same pid; False if it has
    ended.
    """
    pid = pid_of(identifier)
    if pid is None:
        return False
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # From here on the pid is kept: compared once more, it cannot change any more.
        if pid_of(identifier) is None:
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def identify(backend: str, environ: Mapping[str, str], agent_pid: int) -> Identity:
    """The identity of the agent with that pid under `backend`."""
    host = socket.gethostname()
    if backend == "slurm":
        return Identity(
            backend_id=environ["SLURM_JOB_ID"],
            restart_count=int(environ.get("SLURM_RESTART_COUNT", "0")),
            slot=int(environ.get("SLURM_NODEID", "0")),
            host=environ.get("SLURMD_NODENAME", host),
        )
    if backend == "kubernetes":
        return Identity(environ[names.JOB_UID], 0, None, host)
    return Identity(process_id(agent_pid) or f"{agent_pid}-0-{boot_id()}", 0, 0, host)
