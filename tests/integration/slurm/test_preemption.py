"""Preempted on a real Slurm: started again exactly once, finished as if nothing had happened."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.harness.runs import Driven, node_events, saved_all
from tests.harness.slurm_runs import SlurmBench, causes, job_id

pytestmark = pytest.mark.slurm

STEP_S = 0.15


def check_end(bench: SlurmBench, run: Driven, calm: tuple[Any, ...], *, restarts: int = 1) -> None:
    """Finished under the same id, started again `restarts` times, equal to the calm run."""
    end = run.drive(seconds=240.0)
    assert end.state == "SUCCEEDED", (end.row, run.logs())
    assert end.row["attempt"] == restarts + 1
    assert bench.started_again(run, restarts)
    assert run.outcome() == calm
    assert bench.until_state(run, "COMPLETED", "COMPLETING")


@pytest.mark.parametrize("nodes", [1, 2])
def test_by_a_job_of_higher_priority(bench: SlurmBench, calm: tuple[Any, ...], nodes: int) -> None:
    run = bench.submit(bench.job(nodes=nodes), step_s=STEP_S)
    run.until_step(3)
    bench.cluster.take_nodes()
    check_end(bench, run, calm)
    assert causes(run) == ["preempted"]
    assert saved_all(run)
    assert run.look().row["lost_steps"] == 0
    for node in range(nodes):
        codes = [e["data"]["code"] for e in node_events(run, node, "verdict")]
        assert codes == [75, 0]


def test_without_any_grace_the_kill_wait_is_enough_for_a_short_save(
    bench: SlurmBench, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(bench.job(slurm={"partition": "nograce"}), step_s=STEP_S)
    run.until_step(3)
    bench.cluster.take_nodes()
    check_end(bench, run, calm)
    assert causes(run) == ["requeued"]
    assert saved_all(run)


def test_a_save_longer_than_the_grace_loses_one_interval_at_most(
    bench: SlurmBench, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(bench.job(slurm={"partition": "nograce"}), step_s=0.5, save_s=9.0)
    run.drive(lambda _: bool(run.commits()))
    ((_, saved, _),) = run.commits()
    run.until_step(saved + 3)
    bench.cluster.take_nodes()
    check_end(bench, run, calm)
    assert not [c for c in run.commits() if c[2] == "notice"]
    assert [e["data"]["step"] for e in run.events("resuming")] == [saved]


def test_requeued_by_an_administrator(bench: SlurmBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    bench.cluster.client("scontrol", "requeue", job_id(run))
    check_end(bench, run, calm)
    assert causes(run) == ["requeued"]


def test_a_signal_sent_by_hand(bench: SlurmBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    run.notify("SIGUSR1")
    check_end(bench, run, calm)
    assert causes(run) == ["signal"]


def test_where_the_site_sends_the_job_s_own_signal(
    bench: SlurmBench, calm: tuple[Any, ...]
) -> None:
    bench.cluster.reconfigure(SlurmctldParameters="preempt_send_user_signal")
    try:
        run = bench.submit(step_s=STEP_S)
        run.until_step(3)
        bench.cluster.take_nodes()
        check_end(bench, run, calm)
    finally:
        bench.cluster.reconfigure()
    assert {e["data"]["reason"] for e in run.events("notice")} == {"SIGUSR1"}
    assert causes(run) == ["preempted"]


def test_where_the_site_requeues_by_exit_code(bench: SlurmBench, calm: tuple[Any, ...]) -> None:
    bench.cluster.reconfigure(RequeueExit="75")
    try:
        run = bench.submit(step_s=STEP_S)
        run.until_step(3)
        bench.cluster.take_nodes()
        check_end(bench, run, calm)
    finally:
        bench.cluster.reconfigure()


@pytest.mark.soak  # Slurm asks the node a second time only after a minute
def test_the_controller_of_slurm_dies_in_the_grace(
    bench: SlurmBench, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(step_s=1.0, save_s=2.0)
    run.until_step(1)
    bench.cluster.wait_saved()
    bench.cluster.take_nodes()
    run.drive(lambda _: bool(run.events("notice")))
    bench.cluster.kill("slurmctld")
    time.sleep(5.0)
    assert run.look().state == "UNKNOWN"
    bench.cluster.start_controller()
    check_end(bench, run, calm)
