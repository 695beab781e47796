"""What Slurm says, read."""

from __future__ import annotations

import pytest

from orchestrator.backends.slurm.commands import clean_environment, is_silent, option_names
from orchestrator.backends.slurm.states import (
    JobState,
    observation,
    parse_sacct,
    parse_squeue,
)

HEAD = "JOBID|STATE|REASON|RESTART_COUNT|EXIT_CODE|END_TIME|NAME|\n"


def test_squeue_as_22_05_prints_it() -> None:
    text = HEAD + "1|CANCELLED|None|0|9|1795505027|digits-1|\n4|FAILED|None|1|19200|N/A|x-1|\n"
    assert parse_squeue(text) == (
        JobState("1", "CANCELLED", "None", 0, 0, 9, 1795505027.0, "digits-1"),
        JobState("4", "FAILED", "None", 1, 75, 0, None, "x-1"),
    )


def test_squeue_as_24_11_prints_it() -> None:
    text = HEAD + "1|FAILED|RaisedSignal:9(Killed)|0|0:9|N/A|a-1|\n4|FAILED|None|1|78:0|N/A|x-1|\n"
    killed, refused = parse_squeue(text) or ()
    assert (killed.exit_code, killed.signal) == (0, 9)
    assert (refused.exit_code, refused.signal) == (78, 0)
    assert [observation(job, 0.0).ending for job in (killed, refused)] == ["killed", "refused"]


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Unable to contact", "1|RUNNING|\n"])
def test_no_header_is_no_answer(text: str) -> None:
    assert parse_squeue(text) is None


def test_an_empty_queue_is_an_answer() -> None:
    assert parse_squeue(HEAD) == ()


def test_of_many_accounted_runs_the_last_counts() -> None:
    text = (
        "7|PREEMPTED|0:0|1795505000|a-1\n7|REQUEUED|75:0|1795505100|a-1\n"
        "7|CANCELLED by 1000|0:15|1795505200|a-1\n7.batch|FAILED|1:0||batch\nnoise\n"
        "8|CANCELLED+|0:0|Unknown|b-1\n"
    )
    found = {j.job_id: j for j in parse_sacct(text)}
    assert found["7"] == JobState("7", "CANCELLED", "", 2, 0, 15, 1795505200.0, "a-1")
    assert (found["8"].state, found["8"].restarts, found["8"].end) == ("CANCELLED", 0, None)


NOW = 1000.0
TABLE = [
    (JobState("1", "PENDING", "BeginTime", 1), "pending", ""),
    (JobState("1", "CONFIGURING"), "pending", ""),
    (JobState("1", "REQUEUED"), "pending", ""),
    (JobState("1", "REQUEUE_HOLD"), "pending", ""),
    (JobState("1", "RUNNING"), "running", ""),
    (JobState("1", "COMPLETING", "TimeLimit"), "running", ""),
    (JobState("1", "SUSPENDED"), "running", ""),
    (JobState("1", "COMPLETED"), "gone", "completed"),
    (JobState("1", "CANCELLED", signal=9), "gone", "cancelled"),
    (JobState("1", "DEADLINE"), "gone", "cancelled"),
    (JobState("1", "TIMEOUT", "TimeLimit", signal=9), "gone", "timeout"),
    (JobState("1", "PREEMPTED", end=NOW - 5), "running", ""),
    (JobState("1", "PREEMPTED", end=NOW - 100), "gone", "preempted"),
    (JobState("1", "NODE_FAIL", end=NOW - 5), "running", ""),
    (JobState("1", "NODE_FAIL", end=NOW - 100), "gone", "node-fail"),
    (JobState("1", "NODE_FAIL"), "gone", "node-fail"),
    (JobState("1", "BOOT_FAIL", end=NOW - 100), "gone", "preempted"),
    (JobState("1", "FAILED", exit_code=75), "gone", "stopped"),
    (JobState("1", "FAILED", exit_code=76), "gone", "stopped"),
    (JobState("1", "FAILED", exit_code=74), "gone", "storage"),
    (JobState("1", "FAILED", exit_code=74, signal=9), "gone", "killed"),
    (JobState("1", "FAILED", exit_code=1), "gone", "failed"),
    (JobState("1", "FAILED", exit_code=137), "gone", "killed"),
    (JobState("1", "FAILED", exit_code=9), "gone", "killed"),
    (JobState("1", "FAILED", signal=9), "gone", "killed"),
    (JobState("1", "FAILED", "JobLaunchFailure", signal=15), "gone", "killed"),
    (JobState("1", "OUT_OF_MEMORY", signal=9), "gone", "failed"),
    (JobState("1", "SPECIAL_EXIT", "JobHeldUser", exit_code=1), "gone", "failed"),
    (JobState("1", "SPECIAL_EXIT", exit_code=78), "gone", "refused"),
    (JobState("1", "PENDING", "launch failed requeued held"), "gone", "node-fail"),
    (JobState("1", "PENDING", "launch_failed_requeued_held"), "gone", "node-fail"),
    (JobState("1", "PENDING", "JobHeldUser"), "pending", ""),
    (JobState("1", "PENDING", "JobHeldAdmin"), "pending", ""),
    (JobState("1", "A_STATE_OF_THE_FUTURE"), "unknown", ""),
]


@pytest.mark.parametrize(("job", "phase", "ending"), TABLE, ids=[r[0].state for r in TABLE])
def test_phases_and_endings(job: JobState, phase: str, ending: str) -> None:
    seen = observation(job, NOW)
    assert (seen.phase, seen.ending) == (phase, ending)
    assert seen.restarts == job.restarts


def test_the_callers_own_defaults_do_not_reach_the_clients() -> None:
    environ = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "x"}
    environ |= {"SLURM_JOB_ID": "7", "SQUEUE_FORMAT": "%i", "HOME": "/root"}
    kept = clean_environment(environ)
    assert {"PATH", "SLURM_CONF", "HOME"} <= set(kept)
    assert option_names(environ) == ["SBATCH_PARTITION", "SLURM_JOB_ID", "SQUEUE_FORMAT"]
    assert not set(option_names(environ)) & set(kept)


def test_silence_and_refusal_are_told_apart() -> None:
    assert is_silent("squeue: error: Unable to contact slurm controller (connect failure)")
    assert is_silent("slurm_load_jobs error: Socket timed out on send/recv operation")
    assert not is_silent("sbatch: error: invalid partition specified: nowhere")
    assert not is_silent("scancel: error: Kill job error on job id 9: Invalid job id specified")
