"""The life of one job: runs its batch script, again after a requeue, and keeps its clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.harness.fake_slurm import state

TICK_S = 0.05
FINAL = {"cancel": "CANCELLED", "timeout": "TIMEOUT", "node-fail": "NODE_FAIL"}


def main(job_id: str) -> None:
    """Until the job is final."""
    while start(job_id):
        process = run(job_id)
        while process.poll() is None:
            tick(job_id, process)
            time.sleep(TICK_S)
        settle(job_id, process.returncode)


def start(job_id: str) -> bool:
    """Wait for the job's turn; False if it is final."""
    while True:
        with state.locked():
            job = state.read(job_id)
            assert job is not None
            if job["state"] != "PENDING":
                return False
            if time.time() >= job["eligible"] and not state.setting("hold", False):
                job |= {
                    "state": "RUNNING",
                    "why": "",
                    "kill_at": None,
                    "preempt": None,
                    "end": None,
                }
                job["reason"], job["started"] = "None", time.time()
                state.write(job)
                return True
        time.sleep(TICK_S)


def run(job_id: str) -> subprocess.Popen[bytes]:
    job = state.read(job_id)
    assert job is not None
    (state.root() / "jobs" / f"{job_id}.tasks").unlink(missing_ok=True)
    environ = {k: v for k, v in os.environ.items() if k in (state.FOLDER, "PATH", "HOME")}
    environ |= {"SLURM_JOB_ID": job_id, "SLURM_CONF": "fake"}
    if job["restarts"]:
        environ["SLURM_RESTART_COUNT"] = str(job["restarts"])
    with (Path(job["chdir"]) / job["output"]).open("ab") as out:
        process = subprocess.Popen(
            ["bash", job["script"]],
            env=environ,
            cwd=job["chdir"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    with state.locked():
        job = state.read(job_id)
        assert job is not None
        state.write({**job, "pid": process.pid})
    return process


def tick(job_id: str, process: subprocess.Popen[bytes]) -> None:
    """What is due: the end of a grace, the kill."""
    with state.locked():
        job = state.read(job_id)
        assert job is not None
        now = time.time()
        if job["state"] == "RUNNING" and job["preempt"] and now >= job["preempt"]:
            state.end_job(job, "preempt")
            state.write(job)
        if job["kill_at"] and now >= job["kill_at"]:
            kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    family = [process.pid, *state.descendants(process.pid)]
    state.kill(family, signal.SIGSTOP)
    state.kill(family, signal.SIGKILL)


def settle(job_id: str, status: int) -> None:
    """The state that follows from the end of the script and from why it ended."""
    with state.locked():
        job = state.read(job_id)
        assert job is not None
        why = job["why"]
        job |= {"pid": None, "end": job["end"] or time.time(), "kill_at": None}
        job["status"] = (-status if status < 0 else status << 8) & 0xFFFF
        if why == "node-fail" and job["requeue"] and not job.get("final"):
            job["restarts"] += 1
        if why in ("requeue", "preempt", "node-fail") and job["requeue"] and not job.get("final"):
            pend(job)
        elif why in FINAL:
            job["state"] = FINAL[why]
        elif why == "preempt":
            job["state"] = "PREEMPTED"
        elif status != 0 and status == state.setting("requeue_exit", None) and job["requeue"]:
            job["restarts"] += 1
            pend(job)
        elif job["preempt"] and state.setting("grace_preempt", False) and job["requeue"]:
            # 24.05 and later: whatever ends within the grace was preempted.
            job["restarts"] += 1
            pend(job)
        else:
            job["state"] = "COMPLETED" if status == 0 else "FAILED"
        state.write(job)


def pend(job: state.Job) -> None:
    job |= {"state": "PENDING", "reason": "BeginTime", "preempt": None}
    job["eligible"] = time.time() + state.setting("eligible_s", 0.3)


if __name__ == "__main__":
    main(sys.argv[1])
