"""What Slurm says of a job, read into the phases and endings that this program knows. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.backends.base import Observation
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.records import Ending, ending_by_code

FIELDS = ("JobID", "State", "Reason", "RestartCnt", "exit_code", "EndTime", "Name")
SQUEUE_FORMAT = ",".join(f"{name}:|" for name in FIELDS)
SACCT_FORMAT = "JobIDRaw,State,ExitCode,End,JobName"
IN_FLIGHT_S = 15.0
"""For so long after its end, a job that Slurm may start again is believed to be on its way
from one start to the next."""

HELD_AFTER_FAILURE = "launch failed requeued held"
"""Reason of a job that Slurm could not start on its node, and holds (some versions write `_`)."""

_PENDING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_ENDINGS: Mapping[str, Ending] = {
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "DEADLINE": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node-fail",
    # A cloud had no machine for it.
    "BOOT_FAIL": "preempted",
    "LAUNCH_FAILED": "node-fail",
    "RECONFIG_FAIL": "node-fail",
    "OUT_OF_MEMORY": "failed",
    "FAILED": "failed",
    "SPECIAL_EXIT": "failed",
}
"""SPECIAL_EXIT: ended with a code of RequeueExitHold; Slurm holds it until somebody releases it."""
_RESTARTABLE: tuple[Ending, ...] = ("preempted", "node-fail")
_KILLED_CODE = 137


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as squeue or sacct has it."""

    job_id: str
    state: str
    reason: str = ""
    restarts: int = 0
    exit_code: int = 0
    signal: int = 0
    end: float | None = None
    """Seconds since the epoch."""
    name: str = ""


def parse_squeue(text: str) -> tuple[JobState, ...] | None:
    """The rows of `squeue -O SQUEUE_FORMAT`; None if it is no answer at all (no header)."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("JOBID|"):
        return None
    return tuple(_squeue_rows(lines[1:]))


def _squeue_rows(lines: list[str]) -> Iterator[JobState]:
    for line in lines:
        cells = line.split("|")
        if len(cells) < len(FIELDS):
            continue
        job_id, state, reason, restarts, status, end, name = cells[: len(FIELDS)]
        code, number = _status(status)
        yield JobState(
            job_id=job_id,
            state=state,
            reason=reason,
            restarts=int(restarts) if restarts.isdigit() else 0,
            exit_code=code,
            signal=number,
            end=_seconds(end),
            name=name,
        )


def _status(text: str) -> tuple[int, int]:
    """Exit code and signal: 22.05's squeue prints a wait status, 24.11's `78:0`, as sacct does."""
    code, colon, number = text.partition(":")
    if colon:
        return int(code) if code.isdigit() else 0, int(number) if number.isdigit() else 0
    status = int(text) if text.lstrip("-").isdigit() else 0
    return status >> 8, status & 0x7F


def parse_sacct(text: str) -> tuple[JobState, ...]:
    """The newest row of each job in `sacct -D -X -n -P -o SACCT_FORMAT` (oldest first). Jobs of
    the same id are told apart by their names.
    """
    found: dict[tuple[str, str], JobState] = {}
    runs: dict[tuple[str, str], int] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) < 5 or not cells[0].isdigit():
            continue
        job_id, state, status, end, name = cells[:5]
        code, number = _status(status)
        which = (job_id, name)
        runs[which] = runs.get(which, -1) + 1
        found[which] = JobState(
            job_id=job_id,
            # "CANCELLED by 1000"
            state=state.split(" ")[0].rstrip("+"),
            restarts=runs[which],
            exit_code=code,
            signal=number,
            end=_seconds(end),
            name=name,
        )
    return tuple(found.values())


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def observation(job: JobState, now: float) -> Observation:
    """Phase and ending. `now`: seconds since the epoch, of a clock near that of Slurm."""
    detail = " ".join(w for w in (job.state, _reason(job)) if w)
    if is_left_held(job):
        ending: Ending = ending_of(job) or "node-fail"
        return Observation(
            phase="gone", detail=detail, ending=ending, restarts=job.restarts, held=True
        )
    if job.state in _PENDING:
        return Observation(phase="pending", detail=detail, restarts=job.restarts)
    if job.state in _RUNNING:
        words = "" if job.state == "RUNNING" and not _reason(job) else detail
        return Observation(phase="running", detail=words, restarts=job.restarts)
    found = ending_of(job)
    if found is None:
        return Observation(phase="unknown", detail=detail, restarts=job.restarts)
    if found in _RESTARTABLE and job.end is not None and now - job.end < IN_FLIGHT_S:
        return Observation(phase="running", detail=detail, restarts=job.restarts)
    return Observation(phase="gone", detail=detail, ending=found, restarts=job.restarts)


def is_left_held(job: JobState) -> bool:
    """True for a job that has failed, and that Slurm holds until somebody releases it: nobody
    will. What a person holds is waited for.
    """
    held = job.reason.replace("_", " ") == HELD_AFTER_FAILURE
    return job.state == "SPECIAL_EXIT" or (job.state in _PENDING and held)


def _reason(job: JobState) -> str:
    return "" if job.reason in ("None", "") else f"({job.reason})"


def ending_of(job: JobState) -> Ending | None:
    """How a job that has ended did so; None for a state that nobody knows."""
    ending = _ENDINGS.get(job.state)
    if ending != "failed" or job.state == "OUT_OF_MEMORY":
        return ending
    if job.exit_code == ExitCode.REFUSED and not job.signal:
        return "refused"
    if "LaunchFailure" in job.reason or job.signal == 9 or job.exit_code in (9, _KILLED_CODE):
        return "killed"
    return ending if job.signal else ending_by_code(job.exit_code) or ending
