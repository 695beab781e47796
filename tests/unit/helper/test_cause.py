"""Why a notice came, from what `scontrol -o show job` says."""

from __future__ import annotations

import pytest

from orchestrator.helper.cause import Cause, read_cause

NOW = 1000.0


def shown(
    state: str,
    *,
    restarts: int = 0,
    end: object = 9000,
    preempt: object = "None",
    reason: str = "None",
) -> str:
    return (
        f"JobId=7 JobName=digits-1 UserId=root(0) JobState={state} Reason={reason} "
        f"Requeue=1 Restarts={restarts} ExitCode=0:0 EndTime={end} PreemptTime={preempt} "
        "Comment=JobState=RUNNING PreemptTime=5 Power="
    )


TABLE = [
    ("preempted", shown("RUNNING", end=1020, preempt=998), Cause("preempted", 20.0)),
    ("its grace is over", shown("COMPLETING", preempt=970), Cause("preempted")),
    ("limit is near", shown("RUNNING", end=1030), Cause("time-limit", 30.0)),
    ("limit has come", shown("COMPLETING", reason="TimeLimit"), Cause("time-limit")),
    ("by hand", shown("RUNNING"), Cause("signal")),
    ("scancel", shown("COMPLETING", end=999), Cause("cancelled")),
    ("requeued", shown("COMPLETING", restarts=1), Cause("requeued")),
    ("requeued and waiting", shown("PENDING", restarts=1, end="Unknown"), Cause("requeued")),
]


@pytest.mark.parametrize(("text", "cause"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_causes(text: str, cause: Cause) -> None:
    assert read_cause(text, key="digits-1", restart_count=0, now=NOW) == cause


def test_a_second_start_is_no_requeue_yet() -> None:
    text = shown("COMPLETING", restarts=2, end=999)
    assert read_cause(text, key="digits-1", restart_count=2, now=NOW) == Cause("cancelled")


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id", "JobId=7"])
def test_no_answer_is_no_cause(text: str) -> None:
    assert read_cause(text, key="digits-1", restart_count=0, now=NOW) is None


def test_what_is_said_of_another_job_of_the_same_id_is_no_cause() -> None:
    text = shown("COMPLETING", end=999)
    assert read_cause(text, key="digits-1", restart_count=0, now=NOW) is not None
    assert read_cause(text, key="digits-2", restart_count=0, now=NOW) is None
