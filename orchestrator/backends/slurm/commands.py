"""Running Slurm's clients: each under a time limit, none with the caller's own defaults."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import Unreachable, UserError

LIMIT_S = 30.0
"""Longest time of one client; some wait for minutes for a daemon that is away."""
_SILENT = (
    "unable to contact",
    "connection refused",
    "connection timed out",
    "timed out",
    "socket timed out",
    "communication",
    "cannot stat file",
    "unable to process configuration",
    "temporarily unavailable",
    "zero bytes were transmitted",
)
"""Words of a client that could not reach the daemon it asks (lower case)."""
_FULL = ("submitjob", "maxjobcount", "slurm temporarily unable to accept job")
"""Words of sbatch for a limit on how many jobs may be queued at a time (lower case), as in
AssocMaxSubmitJobLimit or QOSGrpSubmitJobsLimit. Not "violates accounting/QOS policy", which it
says of a job too large to be ever taken, too.
"""
_ENDED = ("invalid job id", "already completing or completed", "already finished")
"""Words of scontrol and scancel for a job that has ended (lower case)."""
_PREFIXES = ("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_", "SRUN_", "SCONTROL_")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client said."""

    status: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def words(self) -> str:
        """Its complaint in one line."""
        lines = [x for x in (self.err or self.out).splitlines() if x.strip()]
        return lines[-1].strip() if lines else f"exit code {self.status}"


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the variables that set options of Slurm's clients or stem from a job around us.

    SLURM_CONF and the like stay; times are printed as seconds since the epoch.
    """
    kept = {k: v for k, v in environ.items() if not _is_option(k)}
    return {**kept, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}


def option_names(environ: Mapping[str, str]) -> list[str]:
    """The variables that `clean_environment` drops."""
    return sorted(name for name in environ if _is_option(name))


def _is_option(name: str) -> bool:
    if name in ("SLURM_CONF", "SLURM_CONF_SERVER"):
        return False
    return name.startswith(_PREFIXES)


def run(argv: Sequence[str], *, limit_s: float = LIMIT_S) -> Answer:
    """What the client answers. Raises Unreachable if it cannot reach its daemon, UserError
    where there is no Slurm.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise UserError(
            f"{argv[0]} is not on PATH", hint="submit from a login node of the Slurm cluster"
        )
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{argv[0]} does not answer within {limit_s:.0f} s") from None
    answer = Answer(done.returncode, done.stdout, done.stderr)
    if not answer.ok and is_silent(answer.err):
        raise Unreachable(f"{argv[0]}: {answer.words}")
    return answer


def end_job(job_id: str) -> None:
    """Cancel a job that the caller has just recognized as his; no error if it has ended.

    First the permission to start again is taken, so that nothing can undo the cancel.
    """
    for argv in (["scontrol", "update", f"jobid={job_id}", "requeue=0"], ["scancel", job_id]):
        answer = run(argv)
        said = answer.err.lower()
        if not answer.ok and not any(words in said for words in _ENDED):
            raise Unreachable(f"{argv[0]}: {answer.words}")


def is_silent(words: str) -> bool:
    """True if a client's complaint means that nobody answered it."""
    said = words.lower()
    return any(sign in said for sign in _SILENT)


def full_words(words: str) -> str | None:
    """The line of sbatch's complaint which says that it would take the job later, when others
    have ended; None if it does not.
    """
    lines = (line.strip() for line in words.splitlines())
    return next((x for x in lines if any(sign in x.lower() for sign in _FULL)), None)
