"""Taken away on a real Kubernetes: finished as if nothing had happened."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from orchestrator.contract.resolved import PreemptionSpec
from tests.harness import runs
from tests.harness.kube_runs import KubeBench, codes, job_name, run_events
from tests.harness.runs import Driven, node_events, saved_all

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600)]

# Slow steps: on a busy machine it takes seconds until an eviction has become a signal.
STEP_S = 0.5
REPLACED = 79


def check_end(
    run: Driven, calm: tuple[Any, ...], *, attempts: int = 2, seconds: float = 120.0
) -> None:
    """Finished, equal to the calm run, in so many attempts."""
    end = run.drive(seconds=seconds)
    assert end.state == "SUCCEEDED", (end.row, end.decision)
    assert end.row["attempt"] == attempts
    assert run.outcome() == calm


def saved_at_notice(run: Driven, attempt: int = 1) -> bool:
    return [c[2] for c in run.commits() if c[0] == attempt][-1] == "notice"


def exit_codes(bench: KubeBench, run: Driven) -> list[int]:
    """Of all pods of the run that are still there."""
    pods = bench.cluster.pods(run.run.run_id)
    states = [c["state"] for p in pods for c in p["status"].get("containerStatuses", ())]
    return [s["terminated"]["exitCode"] for s in states if "terminated" in s]


def test_undisturbed(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit()
    check_end(run, calm, attempts=1)
    assert exit_codes(bench, run) == [0]


def test_a_pod_is_deleted_and_its_replacement_stands_aside(
    bench: KubeBench, calm: tuple[Any, ...]
) -> None:
    """Servers before 1.28 start another pod at once, on the free second node."""
    job = bench.job(preemption=PreemptionSpec(grace_s=60.0))
    job = replace(job, checkpoint=replace(job.checkpoint, every_steps=20))
    run = bench.submit(job, step_s=STEP_S, save_s=15.0)
    run.until_step(3)
    [pod] = bench.cluster.running(run.run.run_id)
    bench.cluster.delete_pod(pod["metadata"]["name"])
    if bench.cluster.version() < (1, 28):
        bench.cluster.wait(lambda: REPLACED in exit_codes(bench, run))
        assert not codes(run, 1), "the replacement ended while the first one still saved"
    check_end(run, calm)
    assert codes(run, 1) == [75]
    assert saved_at_notice(run)
    assert len({e["data"]["submission"] for e in run.events("claimed")}) == 2


def test_preempted_by_a_pod_of_higher_priority(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    takers = bench.take_gpus()
    run.drive(lambda s: "no node has room" in (s.row["message"] or ""))
    bench.cluster.kubectl("delete", "pod", *takers, "--grace-period=0", "--force")
    check_end(run, calm)
    assert codes(run, 1) == [75]
    assert saved_all(run)


def test_preempt_evicts(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    run.notify()
    check_end(run, calm)
    assert codes(run, 1) == [75]
    assert [e["data"]["reason"] for e in run.events("notice")] == ["SIGTERM"]


def test_the_node_is_drained(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    [pod] = bench.cluster.running(run.run.run_id)
    node = pod["spec"]["nodeName"]
    bench.cluster.kubectl(
        *("drain", node, "--force", "--ignore-daemonsets", "--delete-emptydir-data"),
        "--timeout=30s",
        check=False,
    )
    check_end(run, calm)
    assert codes(run, 1) == [75]
    hosts = {e["data"]["host"] for e in run.events("claimed")}
    assert len(hosts) == 2


def test_one_pod_of_a_gang_is_deleted(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(bench.job(nodes=2), step_s=STEP_S)
    run.until_step(3)
    first, _ = bench.cluster.running(run.run.run_id)
    bench.cluster.delete_pod(first["metadata"]["name"])
    check_end(run, calm)
    assert codes(run, 1) == [75, 75]
    last = max(run.curve(0)), max(run.curve(1))
    assert last == (20, 20)
    assert saved_all(run)
    step = max(c[1] for c in run.commits() if c[0] == 1)
    starts = [e["data"]["step"] for n in (0, 1) for e in node_events(run, n, "resuming")]
    assert set(starts) == {step}


@pytest.mark.soak
def test_five_preemptions_in_a_row(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    # Slow steps: it may take two seconds until an eviction has become a signal.
    run = bench.submit(step_s=1.0)
    for attempt in range(1, 6):
        saved = max((c[1] for c in run.commits()), default=0)
        run.until_step(saved + 1, attempt=attempt)
        run.notify()
        run.until_attempt(attempt + 1)
    check_end(run, calm, attempts=6, seconds=180.0)
    assert [codes(run, n) for n in range(1, 7)] == [[75]] * 5 + [[0]]


def test_a_save_longer_than_the_grace_loses_one_interval_at_most(
    bench: KubeBench, calm: tuple[Any, ...]
) -> None:
    job = bench.job()
    job = replace(
        job,
        checkpoint=replace(job.checkpoint, every_steps=10),
        preemption=replace(job.preemption, grace_s=2.0),
    )
    run = bench.submit(job, step_s=0.6, save_s=3.0)
    run.drive(lambda _: bool(run.commits()), seconds=60.0)
    run.notify()
    check_end(run, calm)
    assert [c[1] for c in run.commits()] == [10, 20]
    assert [e["data"]["step"] for e in run.events("resuming")] == [10]


@pytest.mark.soak
def test_the_node_is_lost(
    bench: KubeBench, calm: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notice, no verdict, and a pod that stays Terminating: the attempt is fenced."""
    if bench.cluster.pid_of("n1") is None:
        pytest.skip("QVL_TEST_NODE_PIDS does not say how a node is lost here")
    monkeypatch.setattr(runs, "SiteSettings", partial(runs.SiteSettings, node_lost_s=5.0))
    monkeypatch.setattr("orchestrator.backends.kubernetes.reading.LOST_S", 5.0)
    run = bench.submit(step_s=STEP_S)
    run.drive(lambda _: bool(run.commits()))
    [pod] = bench.cluster.running(run.run.run_id)
    node = pod["spec"]["nodeName"]
    bench.cluster.lose(node)
    try:
        check_end(run, calm, seconds=200.0)
    finally:
        bench.cluster.revive()
    assert codes(run, 1) == []
    [requeued] = run_events(run, "requeued")
    assert "does not answer" in requeued["data"]["detail"], requeued
    assert requeued["data"]["ended"] == "node-fail"


def test_the_api_server_is_away(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    if bench.cluster.pid_of("apiserver") is None:
        pytest.skip("QVL_TEST_NODE_PIDS does not name the API server's process")
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    run.notify()
    bench.cluster.lose("apiserver")
    time.sleep(1.0)
    assert run.look().state == "UNKNOWN"
    bench.cluster.revive()
    check_end(run, calm)


def test_the_controller_dies_again_and_again(
    bench: KubeBench, calm: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each half second of its life, over two preemptions: one Job a submission."""
    run = bench.submit(step_s=0.3)
    run.until_step(3)
    run.notify()
    notified = False
    end = time.monotonic() + 150.0
    while time.monotonic() < end and not run.run.registry.find(run.run.run_id).final:
        bench.controller_for(run, 1.5)
        second = job_name(run).endswith("-2") and max(run.curve(0), default=0) >= 8
        if second and not notified and bench.cluster.running(run.run.run_id):
            run.look()
            run.notify()
            notified = True
    run.hurry()
    check_end(run, calm, attempts=3)
    names = {j["metadata"]["name"] for j in bench.cluster.get("jobs")}
    assert names == {f"{run.run.run_id}-{n}" for n in (1, 2, 3)}
