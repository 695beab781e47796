"""Preempted, requeued, finished: the same bits as an undisturbed run (torch-free trainer)."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from orchestrator.contract.resolved import CheckpointSpec, DataSpec
from tests.harness import gates
from tests.harness.gates import Gate
from tests.harness.runs import Bench, kill, wait_gone

STEP_S = 0.05


def undisturbed(bench: Bench, **job: object) -> tuple[object, ...]:
    run = bench.submit(bench.job(**job))
    assert run.drive().state == "SUCCEEDED"
    return run.outcome()


def test_every_signal_to_every_place_loses_nothing(bench: Bench) -> None:
    run = bench.submit(step_s=STEP_S)
    places = [("SIGTERM", None), ("SIGUSR1", 1), ("SIGUSR2", 0), ("SIGTERM", 1)]
    for attempt, (name, rank) in enumerate(places, 1):
        run.until_step(attempt * 3, attempt=attempt)
        run.notify(name, rank)
        run.until_attempt(attempt + 1)
    end = run.drive()
    assert end.state == "SUCCEEDED"
    assert (end.row["attempt"], end.row["preemptions"], end.row["lost_steps"]) == (5, 4, 0)
    assert run.outcome() == undisturbed(bench)
    codes = [e["data"]["code"] for e in run.events("verdict")]
    assert codes == [75, 75, 75, 75, 0]


def test_to_the_whole_process_group(bench: Bench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(4, attempt=1)
    os.killpg(run.agent_pid(), signal.SIGTERM)
    run.until_attempt(2)
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == undisturbed(bench)
    assert [e["data"]["code"] for e in run.events("verdict")] == [75, 0]


def test_in_the_middle_of_a_step_saves_its_start(bench: Bench) -> None:
    within = Gate(bench.folder, "micro", 2, do="pause")
    run = gates.submit(bench, within)
    within.reached(run)
    run.notify("SIGUSR1", 1)
    run.until_attempt(2)
    (stop,) = [e for e in run.events("stop_agreed") if e["attempt"] == 1 and e["rank"] == 0]
    assert stop["data"]["micro_batch"] == 1


def test_while_loading_exits_76_and_is_free(bench: Bench) -> None:
    run = bench.submit(load_s=1.5, step_s=0.01)
    run.drive(lambda s: s.row["attempt"] == 1)
    run.notify("SIGTERM")
    end = run.drive()
    assert end.state == "SUCCEEDED"
    (verdict,) = [e for e in run.events("verdict") if e["attempt"] == 1]
    assert verdict["data"]["code"] == 76
    assert run.outcome() == undisturbed(bench)


def test_before_the_claim_nothing_is_claimed(bench: Bench) -> None:
    run = bench.submit(step_s=0.01)
    run.look()
    run.notify("SIGUSR1")
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == undisturbed(bench)


def test_twice_the_second_changes_nothing(bench: Bench) -> None:
    run = bench.submit(step_s=STEP_S, save_s=0.4)
    run.until_step(7, attempt=1)
    run.notify("SIGTERM")
    run.notify("SIGUSR1", 0)
    run.notify("SIGTERM")
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == undisturbed(bench)
    assert len([c for c in run.commits() if c[2] == "notice"]) == 1


def test_in_an_evaluation_it_is_run_again(bench: Bench) -> None:
    job = bench.job(
        training={"max_steps": 12, "seed": 7, "eval_steps": 6, "learning_rate": 1e-3},
        data=DataSpec(
            train=str(bench.folder / "train.json"), eval=str(bench.folder / "train.json")
        ),
    )
    run = bench.submit(job, eval_s=0.3, step_s=0.01)
    run.until_step(6)
    run.drive(lambda _: b"evaluating" in run.storage.get("summary.json"))
    run.notify("SIGTERM")
    assert run.drive().state == "SUCCEEDED"
    calm = bench.submit(job, step_s=0.01)
    calm.drive()
    assert run.outcome() == calm.outcome()
    curve = [(e["data"]["step"], e["data"]["metrics"]) for e in run.events("evaluated")]
    assert curve == [(e["data"]["step"], e["data"]["metrics"]) for e in calm.events("evaluated")]


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.soak)])
def test_preemptions_in_a_row(bench: Bench, count: int) -> None:
    training = {"max_steps": 6 * count, "seed": 7, "learning_rate": 1e-3}
    job = bench.job(training=training, ranks=1)
    run = bench.submit(job, step_s=0.03)
    for attempt in range(1, count + 1):
        run.drive(
            lambda s, n=attempt: (
                s.row["attempt"] == n and s.state == "RUNNING" and s.row["step"] >= 2 * n
            )
        )
        run.notify(random.Random(attempt).choice(["SIGTERM", "SIGUSR1", "SIGUSR2"]))
        run.until_attempt(attempt + 1)
    end = run.drive()
    assert end.state == "SUCCEEDED"
    assert (end.row["preemptions"], end.row["lost_steps"]) == (count, 0)
    calm = bench.submit(job)
    calm.drive()
    assert run.outcome() == calm.outcome()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_loses_at_most_one_interval(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    job = replace(
        bench.job(), preemption=replace(bench.job().preemption, max_failures_without_progress=99)
    )
    run = bench.submit(job, step_s=0.03)
    for _ in range(4):
        run.drive(lambda s: s.row["backend_job_id"] is not None and s.state != "REQUEUED")
        time.sleep(chance.uniform(0.1, 0.9))
        if run.look().settled:
            break
        try:
            victims = run.tree()
        except AssertionError:
            continue
        committed = max((c[1] for c in run.commits()), default=0)
        kill(victims)
        wait_gone(victims)
        assert all(s <= committed + 2 * 5 for s in run.curve())
    end = run.drive()
    assert end.state == "SUCCEEDED"
    assert run.outcome() == undisturbed(bench)


def test_a_killed_agent_leaves_no_orphans(bench: Bench) -> None:
    run = bench.submit(step_s=0.5)
    run.until_step(1)
    family = run.tree()
    assert len(family) == 6, "agent, helper, two ranks and their savers"
    kill([run.agent_pid()])
    wait_gone(family)


def test_a_rank_that_hangs_is_killed_within_the_grace(bench: Bench) -> None:
    job = replace(bench.job(), preemption=replace(bench.job().preemption, grace_s=3.0))
    stuck = Gate(bench.folder, "micro", 7, (1,), do="hang", more={"how": "sleeps"})
    run = gates.submit(bench, stuck, job=job)
    stuck.reached(run)
    run.notify("SIGTERM")
    run.until_attempt(2)
    verdicts = [e["data"] for e in run.events("verdict") if e["attempt"] == 1]
    assert [v["code"] for v in verdicts] == [76]
    assert verdicts[0]["notice_to_exit_s"] < 3.0


def test_intervals_and_retention(bench: Bench) -> None:
    job = replace(
        bench.job(),
        checkpoint=CheckpointSpec(uri=str(bench.folder / "runs"), every_steps=3, keep_last=2),
    )
    run = bench.submit(job, step_s=0.15)
    assert run.drive().state == "SUCCEEDED"
    assert [c[1] for c in run.commits()] == [3, 6, 9, 12, 15, 18, 20]
    kept = sorted(p.name for p in run.directory.glob("attempts/*/checkpoints/*"))
    assert kept == ["checkpoint-18", "checkpoint-20"]
