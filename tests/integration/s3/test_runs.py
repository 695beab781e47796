"""Whole runs whose run directory is on S3 alone, with the torch-free trainer."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.contract.spec import StartFrom
from orchestrator.operations.actions import resume
from orchestrator.operations.submit import start_submission
from orchestrator.run_directory import attempts
from orchestrator.storage.protocol import NotFound
from tests.harness.runs import Bench, Driven, kill, paused, prepared, wait_gone

pytestmark = pytest.mark.s3


Outcome = tuple[object, ...]


def cancelled_after(run: Driven, step: int) -> None:
    run.until_step(step)
    run.run.storage.create("tombstone", b"{}")
    run.cancel_job()
    run.drive()


def copies(bench: Bench) -> list[Path]:
    """Files that any attempt left on this node."""
    return [p for p in (bench.folder / "tmp").rglob("*") if p.is_file()]


def test_preempted_it_ends_as_if_undisturbed(bench: Bench, calm: Outcome) -> None:
    run = bench.submit(step_s=0.05)
    for attempt, name in enumerate(["SIGTERM", "SIGUSR1"], 1):
        run.until_step(attempt * 4, attempt=attempt)
        run.notify(name)
        run.until_attempt(attempt + 1)
    end = run.drive()
    assert (end.state, end.row["attempt"], end.row["lost_steps"]) == ("SUCCEEDED", 3, 0)
    assert run.outcome() == calm
    assert copies(bench) == [], "the copies that attempts loaded from are gone"


def test_killed_at_random_moments_it_loses_at_most_one_interval(
    bench: Bench, calm: Outcome
) -> None:
    chance = random.Random(3)
    job = replace(
        bench.job(), preemption=replace(bench.job().preemption, max_failures_without_progress=99)
    )
    run = bench.submit(job, step_s=0.05)
    run.hurry()
    for _ in range(4):
        run.drive(lambda s: s.row["backend_job_id"] is not None and s.state != "REQUEUED")
        time.sleep(chance.uniform(0.2, 2.0))
        if run.look().settled:
            break
        try:
            victims = run.tree()
        except AssertionError:
            continue
        kill(victims)
        wait_gone(victims)
    if run.drive().state == "HELD":  # killed three times without a newer checkpoint
        resume(run.run)
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == calm


def test_an_older_attempt_paused_in_its_save_cannot_commit(bench: Bench, calm: Outcome) -> None:
    patient = replace(bench.job().preemption, grace_s=120.0)
    run = bench.submit(bench.job(preemption=patient), step_s=0.05, save_s=0.5)
    run.until_step(3, attempt=1)
    run.notify("SIGTERM")
    time.sleep(0.3)
    older = run.tree()
    with paused(older):
        newest = attempts.read_submissions(run.storage)[-1]
        spec = replace(newest.spec, submission=newest.number + 1)
        start_submission(run.run, prepared(run.run, spec), newest.start, reason="requeue")
        end = run.drive()
        assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 2)
        before = run.records()
    wait_gone(older, 40.0)
    assert run.records() == before
    assert not [c for c in run.commits() if c[0] == 1 and c[2] == "notice"]
    assert [v.code for v in attempts.read_verdicts(run.storage, 1)] == [79]
    assert run.outcome() == calm


@pytest.mark.parametrize("what", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over(bench: Bench, calm: Outcome, what: str) -> None:
    run = bench.submit(step_s=0.3)
    cancelled_after(run, 11)
    before, newest = [r.commit() for r in run.records() if r.kind == "commit"][-2:]
    name = f"{newest.directory}/rank_1.json"
    data = run.storage.get(name)
    if what == "gone":
        run.storage.delete(name)
    else:
        run.storage.put(name, data[:-3] if what == "cut" else data[:9] + b"?" + data[10:])
    resume(run.run)
    assert run.drive().state == "SUCCEEDED"
    (bad,) = run.events("checkpoint_bad")
    assert (bad["data"]["step"], name in bad["data"]["reason"]) == (newest.step, True)
    (resuming,) = run.events("resuming")
    assert resuming["data"]["step"] == before.step
    assert run.outcome() == calm


def test_weights_and_older_checkpoints_can_be_asked_for(bench: Bench) -> None:
    run = bench.submit(step_s=0.3)
    cancelled_after(run, 11)
    resume(run.run, restart_from="weights")
    assert run.drive().state == "SUCCEEDED"
    assert run.curve()[1].attempt == 2
    other = bench.submit(step_s=0.3)
    cancelled_after(other, 1)
    with pytest.raises(NotFound):
        run.storage.get(f"{layout.checkpoint_dir(1, 5)}/manifest.json")
    newest = [r for r in run.records() if r.kind == "commit"][-1].commit()
    place = f"{run.storage.uri}/{newest.directory}"
    start = StartFrom(kind="checkpoint", ref=place, after_seq=other.records()[-1].seq)
    spec = replace(attempts.read_submissions(other.storage)[-1].spec, submission=2)
    other.run.storage.delete("tombstone")
    start_submission(other.run, prepared(other.run, spec), start, reason="resume")
    assert other.drive().state == "SUCCEEDED"
    (resuming,) = other.events("resuming")
    assert (resuming["data"]["directory"], resuming["data"]["step"]) == (place, newest.step)
