"""The fake cluster for tests: a folder with clients for PATH, and what may happen to a job."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.fake_slurm import state

CLIENTS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "srun", "sinfo")
TOP = Path(__file__).resolve().parents[3]


@dataclass
class FakeCluster:
    """`install` puts the clients into the environment that is given."""

    folder: Path

    def install(self, environ: Any) -> None:
        """Make the folder and put it first on PATH of `environ`."""
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        for name in CLIENTS:
            file = programs / name
            file.write_text(
                f"#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -P -m "
                f'tests.harness.fake_slurm.clients {name} "$@"\n'
            )
            file.chmod(0o755)
        environ["PATH"] = f"{programs}:{environ['PATH']}"
        environ[state.FOLDER] = str(self.folder)

    def set(self, **settings: Any) -> None:
        """Settings of the cluster (see `state.setting`)."""
        file = self.folder / "settings.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **settings}))

    def job(self, job_id: str) -> state.Job:
        job = state.read(job_id)
        assert job is not None, f"no job {job_id}"
        return job

    def change(self, job_id: str, **news: Any) -> None:
        with state.locked():
            state.write({**self.job(job_id), **news})

    # --- what happens to a job

    def preempt(self, job_id: str, *, number: int = signal.SIGTERM) -> None:
        """Chosen for preemption: the signal at once, the end after the grace."""
        with state.locked():
            job = self.job(job_id)
            grace = state.setting("grace_s", 5.0)
            if grace:
                job["preempt"] = time.time() + grace
                state.signal_tasks(job, number)
            else:
                state.end_job(job, "preempt")
            state.write(job)

    def time_limit(self, job_id: str) -> None:
        with state.locked():
            job = self.job(job_id)
            state.end_job(job, "timeout")
            state.write(job)

    def fail_node(self, job_id: str, *, final: bool = False) -> None:
        """Everything of the job dies at once; Slurm starts it again unless it is final."""
        with state.locked():
            job = self.job(job_id)
            state.write({**job, "why": "node-fail", "state": "COMPLETING", "final": final})
            family = [job["pid"], *state.descendants(job["pid"])]
            state.kill(family, signal.SIGSTOP)
            state.kill(family, signal.SIGKILL)

    def kill_job(self, job_id: str) -> None:
        """SIGKILL of everything by a hand that Slurm knows nothing of."""
        job = self.job(job_id)
        family = [job["pid"], *state.descendants(job["pid"])]
        state.kill(family, signal.SIGSTOP)
        state.kill(family, signal.SIGKILL)

    def close(self) -> None:
        """End every job and its runner."""
        self.set(down=False, hold=True)
        for job in state.everybody():
            with suppress(AssertionError), state.locked():
                now = self.job(str(job["id"]))
                state.write({**now, "requeue": False, "final": True})
                if now["pid"]:
                    state.kill([now["pid"], *state.descendants(now["pid"])], signal.SIGKILL)
                elif now["state"] == "PENDING":
                    state.write({**now, "state": "CANCELLED"})
