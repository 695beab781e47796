"""A rank that hangs ends the attempt with a sentence, stacks in the logs, and a new start."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.contract.layout import logs
from orchestrator.contract.resolved import DataSpec
from orchestrator.run_directory import attempts
from tests.harness.runs import Bench, Driven, paused

HANG_S = 4.0
"""A busy machine may stand still for shorter."""
WAYS = {
    "sleeps": "rank 1 in sleeps",
    "opens_a_fifo": "rank 1 in opens_a_fifo",
    "waits_for_a_lock": "rank 1 in waits_for_a_lock",
    "keeps_the_interpreter": "rank 1 in keeps_the_interpreter",
    "is_stopped": "rank 1 stopped",
    "waits_in_the_kernel": "rank 1 waits in the kernel, for a disk or a file system",
}


def submit(bench: Bench, *spots: dict[str, Any], hang_s: float = HANG_S, **knobs: Any) -> Driven:
    bench.module = "tests.harness.fakeprobe"
    job = replace(bench.job(), hang_s=hang_s, env={"QVL_PROBE": json.dumps(spots)})
    if "eval_s" in knobs:
        data = DataSpec(train=job.data.train, eval=job.data.train)
        job = replace(job, data=data, training={**job.training, "eval_steps": 5})
    run = bench.submit(job, step_s=0.02, **knobs)
    run.hurry()
    return run


def spot(at: str, step: int, rank: int, **more: Any) -> dict[str, Any]:
    found = {"at": at, "step": step, "rank": rank, "do": "hang", "attempt": 1, **more}
    return {**found, "micro": 0} if at == "micro" else found


@pytest.mark.parametrize("how", WAYS)
def test_a_hang_is_told_and_the_run_goes_on(bench: Bench, how: str) -> None:
    run = submit(bench, spot("micro", 7, 1, how=how))
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 2), end.row
    (verdict,) = attempts.read_verdicts(run.storage, 1)
    assert (verdict.code, verdict.reason, verdict.notice) == (1, "hang", None)
    assert verdict.message.startswith("no step for ")
    assert WAYS[how] in verdict.message
    assert ", rank 0 in _read" in verdict.message, "it waits for the other"
    assert stacks(run, 0)
    assert stacks(run, 1)


def stacks(run: Driven, rank: int) -> bool:
    """The first attempt's log of a rank says where it was: by itself, or seen from outside."""
    segments = run.storage.list(logs(1, f"rank-{rank}"))
    lines = [t for s in segments for t in run.storage.get(s.path).decode().splitlines()]
    return any("most recent call first" in t or "thread " in t for t in lines)


def test_a_rank_that_never_begins_is_told_by_its_stage(bench: Bench) -> None:
    run = submit(bench, spot("fetch", 0, 1, how="sleeps"), hang_s=HANG_S / 2)
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 2), end.row
    (verdict,) = attempts.read_verdicts(run.storage, 1)
    assert verdict.message.startswith("nothing after the stage assigned for ")
    assert "rank 1 in sleeps" in verdict.message


def test_what_is_slow_for_a_reason_is_no_hang(bench: Bench) -> None:
    """Evaluations and saves; and a pause of all processes of a job."""
    run = submit(bench, eval_s=1.5, save_s=6.0)
    run.until_step(7)
    with paused(run.tree()):
        time.sleep(7.0)
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1), end.row


def test_the_watch_can_be_turned_off(bench: Bench) -> None:
    run = submit(bench, {**spot("micro", 7, 1), "do": "sleep", "seconds": 6.0}, hang_s=0.0)
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1), end.row
