"""The clients: sbatch, squeue, scontrol, scancel, sacct and srun, as far as they are used."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.harness.fake_slurm import state

TOP = Path(__file__).resolve().parents[3]
IGNORED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


def main(name: str, argv: list[str]) -> int:
    if name != "srun" and state.setting("down", False):
        return complain(f"{name}: error: Unable to contact slurm controller (connect failure)")
    commands = {"sbatch": sbatch, "squeue": squeue, "scontrol": scontrol}
    commands |= {"scancel": scancel, "sacct": sacct, "srun": srun, "sinfo": lambda _: 0}
    return commands[name](argv)


def complain(words: str, code: int = 1) -> int:
    sys.stderr.write(words + "\n")
    return code


def sbatch(argv: list[str]) -> int:
    """Reads the directives as sbatch does: up to the first line that is neither one nor empty."""
    options = [a for a in argv if a.startswith("--")]
    script = next(a for a in argv if not a.startswith("--"))
    text = Path(script).read_text()
    given: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            for word in shlex.split(line[len("#SBATCH") :]):
                key, _, value = word.partition("=")
                given[key.lstrip("-")] = value
        elif line and not line.startswith("#"):
            break
    for word in options:
        key, _, value = word.partition("=")
        given[key.lstrip("-")] = value
    if full := state.setting("full", ""):
        return complain(f"sbatch: error: {full}")
    if given.get("partition") == "nowhere":
        return complain("sbatch: error: invalid partition specified: nowhere")
    with state.locked():
        number = 1 + max((j["id"] for j in state.everybody()), default=0)
        copy = state.root() / "jobs" / f"{number}.sh"
        copy.write_text(text)
        state.write(
            {
                "id": number,
                "name": given.get("job-name", Path(script).name),
                "user": os.geteuid(),
                "exclude": given.get("exclude", ""),
                "state": "PENDING",
                "reason": "None",
                "restarts": 0,
                "status": 0,
                "requeue": "requeue" in given,
                "chdir": given.get("chdir", os.getcwd()),
                "output": given.get("output", f"slurm-{number}.out"),
                "script": str(copy),
                "eligible": time.time(),
                "preempt": None,
                "end": None,
                "why": "",
                "kill_at": None,
                "pid": None,
            }
        )
    launch(number)
    sys.stdout.write(f"Submitted batch job {number}\n")
    return 0


def launch(number: int | str) -> None:
    """Start the job's runner, detached."""
    subprocess.Popen(
        [sys.executable, "-m", "tests.harness.fake_slurm.runner", str(number)],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(state.root() / "runner.log").open("ab"),
        start_new_session=True,
    )


def squeue(argv: list[str]) -> int:
    wanted = next(a for a in argv if a.startswith("--Format=")).partition("=")[2]
    fields = [f.partition(":")[0] for f in wanted.split(",")]
    heads = {"JobID": "JOBID", "RestartCnt": "RESTART_COUNT", "EndTime": "END_TIME"}
    rows = ["".join(f"{heads.get(f, f.upper())}|" for f in fields)]
    assert "--me" in argv
    for job in state.everybody():
        if job.get("purged") or job["user"] != os.geteuid():
            continue
        end = job["preempt"] or job["end"]
        cells = {
            "JobID": job["id"],
            "State": job["state"],
            "Reason": job["reason"],
            "RestartCnt": job["restarts"],
            "exit_code": _printed(int(job["status"])),
            "EndTime": int(end) if end else "N/A",
            "Name": job["name"],
        }
        rows.append("".join(f"{cells[f]}|" for f in fields))
    sys.stdout.write("\n".join(rows) + "\n")
    return 0


def _printed(status: int) -> str:
    """A wait status as squeue prints it: newer ones as sacct does."""
    newer = state.setting("grace_preempt", False)
    return f"{status >> 8}:{status & 0x7F}" if newer else str(status)


def scontrol(argv: list[str]) -> int:
    if argv[:1] == ["-o"]:
        return show(argv[3])
    if argv[0] == "update":
        changes = dict(a.split("=", 1) for a in argv[1:])
        return change(changes["jobid"], requeue=changes["requeue"] != "0")
    if argv[0] == "requeue":
        return requeue(argv[-1], incomplete="incomplete" in argv)
    return complain(f"scontrol: {argv} is not played here")


def show(job_id: str) -> int:
    job = state.read(job_id)
    if job is None or job.get("purged"):
        return complain("slurm_load_jobs error: Invalid job id specified")
    end = job["preempt"] or job["end"] or time.time() + 3600
    words = {
        "JobId": job["id"],
        "JobName": job["name"],
        "UserId": f"someone({job['user']})",
        "JobState": job["state"],
        "Reason": job["reason"],
        "Requeue": int(job["requeue"]),
        "Restarts": job["restarts"],
        "EndTime": int(end),
        "PreemptTime": int(job["preempt"]) if job["preempt"] else "None",
    }
    sys.stdout.write(" ".join(f"{k}={v}" for k, v in words.items()) + "\n")
    return 0


def change(job_id: str, **news: object) -> int:
    with state.locked():
        job = state.read(job_id)
        if job is None:
            return complain("slurm_update error: Invalid job id specified")
        if job["state"] not in ("PENDING", "RUNNING"):
            return complain("slurm_update error: Job/step already completing or completed")
        state.write({**job, **news})
    return 0


def requeue(job_id: str, *, incomplete: bool) -> int:
    with state.locked():
        job = state.read(job_id)
        if job is None:
            return complain("slurm_requeue error: Invalid job id specified")
        if incomplete and job["state"] != "RUNNING":
            return 0
        if not job["requeue"]:
            return complain("Requested operation is presently disabled for job")
        if job["state"] == "PENDING":
            return complain("Job is pending execution for job")
        living = job["state"] in ("RUNNING", "COMPLETING")
        if job["state"] == "RUNNING":
            state.end_job(job, "requeue")
        elif living:
            # So it really is: a plain requeue brings a job back that is being cancelled.
            job |= {"why": "requeue", "restarts": job["restarts"] + 1}
        else:
            job |= {"state": "PENDING", "restarts": job["restarts"] + 1, "why": "", "preempt": None}
            job["eligible"] = time.time() + state.setting("eligible_s", 0.3)
        state.write(job)
    if not living:
        launch(job_id)
    return 0


def scancel(argv: list[str]) -> int:
    name = next((a.partition("=")[2] for a in argv if a.startswith("--signal=")), None)
    with state.locked():
        # 7.0 is a step of job 7, and here its only one.
        for job_id in (a.partition(".")[0] for a in argv if not a.startswith("-")):
            job = state.read(job_id)
            if job is None:
                return complain(
                    f"scancel: error: Kill job error on job id {job_id}: Invalid job id specified"
                )
            if name is not None:
                if job["state"] != "RUNNING":
                    return complain("scancel: error: Job/step already completing or completed")
                state.signal_tasks(job, signal.Signals[f"SIG{name}"])
            elif job["state"] in ("PENDING", "SPECIAL_EXIT"):
                state.write({**job, "state": "CANCELLED", "end": time.time()})
            elif job["state"] == "RUNNING":
                state.end_job(job, "cancel")
                state.write(job)
            elif job["state"] == "COMPLETING":
                state.write({**job, "why": "cancel"})
    return 0


def sacct(argv: list[str]) -> int:
    if not state.setting("sacct", False):
        return complain("Slurm accounting storage is disabled")
    wanted = next(a for a in argv if a.startswith("--jobs=")).partition("=")[2].split(",")
    user = next(int(a.partition("=")[2]) for a in argv if a.startswith("--user="))
    for job in state.everybody():
        if str(job["id"]) in wanted and job["user"] == user:
            code, number = job["status"] >> 8, job["status"] & 0x7F
            end = int(job["end"] or 0)
            row = f"{job['id']}|{job['state']}|{code}:{number}|{end}|{job['name']}\n"
            sys.stdout.write(row)
    return 0


def srun(argv: list[str]) -> int:
    """One task a node, all on this host; the highest code of all is srun's own."""
    count = next(int(a.partition("=")[2]) for a in argv if a.startswith("--ntasks="))
    command = argv[next(i for i, a in enumerate(argv) if not a.startswith("--")) :]
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    processes = []
    for node in range(count):
        step = {"SLURM_STEP_ID": "0", "SLURM_NODEID": str(node), "SLURMD_NODENAME": f"fake{node}"}
        environ = {**os.environ, **step}
        if node in state.setting("stuck_nodes", []):
            processes.append(subprocess.Popen(["sleep", "600"], env=environ))
            continue
        processes.append(subprocess.Popen(command, env=environ, preexec_fn=_normal_signals))
    record = state.root() / "jobs" / f"{os.environ['SLURM_JOB_ID']}.tasks"
    record.write_text(" ".join(str(p.pid) for p in processes))
    codes = [p.wait() for p in processes]
    return max(128 - c if c < 0 else c for c in codes)


def _normal_signals() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(re.sub(r"\W", "", Path(sys.argv[1]).name), sys.argv[2:]))
