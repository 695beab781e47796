"""Jobs as JSON files in one folder, changed under one lock."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER = "FAKE_SLURM"
Job = dict[str, Any]


def root() -> Path:
    return Path(os.environ[FOLDER])


@contextmanager
def locked() -> Iterator[None]:
    fd = os.open(root() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def path_of(job_id: int | str) -> Path:
    return root() / "jobs" / f"{job_id}.json"


def read(job_id: int | str) -> Job | None:
    try:
        return json.loads(path_of(job_id).read_text())
    except FileNotFoundError:
        return None


def write(job: Job) -> None:
    path = path_of(job["id"])
    tmp = path.with_suffix(".tmp")
    tmp.write_text(json.dumps(job))
    tmp.replace(path)


def everybody() -> list[Job]:
    files = sorted((root() / "jobs").glob("*.json"), key=lambda p: int(p.stem))
    return [job for f in files if (job := read(f.stem)) is not None]


def setting(name: str, default: Any) -> Any:
    """Of this cluster: grace_s, kill_wait_s, eligible_s, down, sacct, requeue_exit, stuck_nodes."""
    try:
        return json.loads((root() / "settings.json").read_text()).get(name, default)
    except FileNotFoundError:
        return default


def tasks(job_id: int | str) -> list[int]:
    """Pids of the tasks that srun started in the present run of the job."""
    try:
        return [int(p) for p in (root() / "jobs" / f"{job_id}.tasks").read_text().split()]
    except FileNotFoundError:
        return []


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def kill(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def signal_tasks(job: Job, number: int) -> None:
    """To all processes of the step, as Slurm does."""
    found = [p for pid in tasks(job["id"]) for p in (pid, *descendants(pid))]
    # Slurm's own daemons do it, whoever asks: not this process, which a task may have started.
    kill([p for p in found if p != os.getpid()], number)


def end_job(job: Job, why: str) -> None:
    """Slurm's end of a running job: TERM to script and tasks, KILL after KillWait.

    why: cancel, requeue, timeout, preempt. The caller holds the lock and writes the job.
    """
    job |= {"state": "COMPLETING", "why": why, "kill_at": time.time() + setting("kill_wait_s", 2.0)}
    if why in ("requeue", "preempt"):
        job["restarts"] += 1
    if why == "timeout":
        job["reason"] = "TimeLimit"
    if why == "cancel":
        job["end"] = time.time()
    if job.get("pid"):
        kill([job["pid"]], signal.SIGTERM)
    signal_tasks(job, signal.SIGCONT)
    signal_tasks(job, signal.SIGTERM)
