"""Real Q-LoRA training in real pods, taken away: the same bits, from a host path and from S3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.resolved import ResolvedJob, Resources
from orchestrator.controller.reconcile import Step
from orchestrator.operations import actions
from orchestrator.run_directory import attempts
from tests.harness import jobs, runs
from tests.harness.kube_runs import KubeBench, codes, run_events
from tests.harness.kube_s3 import s3_for_pods
from tests.harness.runs import Bench
from tests.harness.training import TrainingRun
from tests.harness.weed import Weed

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(1200)]

SETTINGS: dict[str, Any] = {"shm_gb": 1.0}
PATIENCE_S = 500.0


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its pictures, where users that are not root may read them."""
    folder = tmp_path_factory.mktemp("training")
    jobs.write_data(folder)
    jobs.make_model(folder)
    for each in (folder, folder.parent, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The outcome of the same job on this machine, left alone."""
    local = Bench(tmp_path_factory.mktemp("calm-training"), module="trainer")
    run = TrainingRun(local.submit(long_job(data)).run)
    assert run.finish().state == "SUCCEEDED", run.logs()
    local.close()
    return run.outcome()


def long_job(data: Path) -> ResolvedJob:
    """Long enough that a notice, which may take two seconds to become a signal, meets it."""
    return jobs.job(data, max_steps=60, every_steps=20)


def submitted(
    bench: KubeBench,
    data: Path,
    *,
    nodes: int = 1,
    grace_s: float = 10.0,
    spots: Sequence[dict[str, Any]] = (),
    **settings: Any,
) -> TrainingRun:
    """The job of two ranks on one node, or on two, disturbed at `spots` (tests.harness.probe)."""
    bench.module = "tests.harness.probe"
    base = bench.job(nodes=nodes, kubernetes={**SETTINGS, **settings})
    mount = {"host_path": str(data), "path": str(data), "read_only": True}
    block = {**base.kubernetes, "volumes": [*base.kubernetes["volumes"], mount]}
    job: ResolvedJob = replace(
        long_job(data),
        backend="kubernetes",
        python=base.python,
        resources=Resources(nodes=nodes, gpus_per_node=2 // nodes),
        checkpoint=replace(long_job(data).checkpoint, uri=base.checkpoint.uri),
        preemption=replace(long_job(data).preemption, grace_s=grace_s),
        env={**base.env, "QVL_PROBE": json.dumps(list(spots))},
        kubernetes=block,
    )
    return TrainingRun(bench.submit(job).run)


def trains(step: int, attempt: int = 1) -> Callable[[Step], bool]:
    def reached(seen: Step) -> bool:
        row = seen.row
        return row["attempt"] >= attempt and row["step"] >= step and seen.state == "RUNNING"

    return reached


def check_end(run: TrainingRun, undisturbed: tuple[Any, ...], attempts: int = 2) -> None:
    end = run.follow(seconds=PATIENCE_S)
    assert end.state == "SUCCEEDED", end.row
    assert (end.row["attempt"], end.row["lost_steps"]) == (attempts, 0)
    for attempt in range(1, attempts):
        assert set(codes(run, attempt)) == {75}
    assert run.outcome() == undisturbed


def test_preempted_by_a_pod_of_higher_priority(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...]
) -> None:
    run = submitted(bench, data)
    run.follow(trains(3), seconds=PATIENCE_S)
    takers = bench.take_gpus()
    run.follow(lambda s: "no node has room" in (s.row["message"] or ""), seconds=PATIENCE_S)
    bench.cluster.kubectl("delete", "pod", *takers, "--grace-period=0", "--force")
    check_end(run, undisturbed)


def test_two_nodes_evicted_with_checkpoints_on_s3(
    bench: KubeBench,
    data: Path,
    undisturbed: tuple[Any, ...],
    weed: Weed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_for_pods(bench, weed, monkeypatch) as settings:
        more = {**settings, "run_as_user": 10001, "fs_group": 10001}
        run = submitted(bench, data, nodes=2, **more)
        run.follow(trains(3), seconds=PATIENCE_S)
        run.notify()
        check_end(run, undisturbed)
        assert [e["data"]["ended"] for e in run_events(run, "requeued")] == ["preempted"]


@pytest.mark.soak
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("how", ["drain", "delete"])
def test_drained_and_deleted_twice(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...], nodes: int, how: str
) -> None:
    run = submitted(bench, data, nodes=nodes)
    for attempt, step in ((1, 2), (2, 25)):
        run.follow(trains(step, attempt), seconds=PATIENCE_S)
        pod = bench.cluster.running(run.run.run_id)[-1]
        node = pod["spec"]["nodeName"]
        if how == "delete":
            bench.cluster.delete_pod(pod["metadata"]["name"])
        else:
            bench.cluster.kubectl(
                "drain", node, "--force", "--delete-emptydir-data", "--timeout=60s"
            )
            bench.cluster.kubectl("uncordon", node)
        run.follow(lambda s, n=attempt: s.row["attempt"] > n, seconds=PATIENCE_S)
    check_end(run, undisturbed, attempts=3)


@pytest.mark.soak
@pytest.mark.parametrize("nodes", [1, 2])
def test_on_s3_preempted_three_times(
    bench: KubeBench,
    data: Path,
    undisturbed: tuple[Any, ...],
    weed: Weed,
    monkeypatch: pytest.MonkeyPatch,
    nodes: int,
) -> None:
    with s3_for_pods(bench, weed, monkeypatch) as settings:
        run = submitted(bench, data, nodes=nodes, **settings)
        for attempt, step in ((1, 1), (2, 15), (3, 35)):
            run.follow(trains(step, attempt), seconds=PATIENCE_S)
            run.notify()
            run.follow(lambda s, n=attempt: s.row["attempt"] > n, seconds=PATIENCE_S)
        check_end(run, undisturbed, attempts=4)


@pytest.mark.soak
def test_a_grace_too_short_for_the_save_loses_one_interval_at_most(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...]
) -> None:
    """Saves at a notice take a minute; those of every twentieth step do not."""
    slow = {"at": "save", "rank": 0, "attempt": 1, "do": "sleep", "seconds": 60}
    spots = [{**slow, "step": step} for step in range(60) if step % 20]
    run = submitted(bench, data, grace_s=3.0, spots=spots)
    run.follow(trains(22), seconds=PATIENCE_S)
    run.notify()
    end = run.follow(seconds=PATIENCE_S)
    assert end.state == "SUCCEEDED", end.row
    assert end.row["attempt"] == 2
    assert 0 <= end.row["lost_steps"] <= 20
    assert not [c for c in run.commits() if c[0] == 1 and c[1] % 20]
    assert run.outcome() == undisturbed


@pytest.mark.soak
def test_a_node_is_lost(
    bench: KubeBench,
    data: Path,
    undisturbed: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bench.cluster.pid_of("n1") is None:
        pytest.skip("QVL_TEST_NODE_PIDS does not say how a node is lost here")
    monkeypatch.setattr(runs, "SiteSettings", partial(runs.SiteSettings, node_lost_s=5.0))
    monkeypatch.setattr("orchestrator.backends.kubernetes.reading.LOST_S", 5.0)
    run = submitted(bench, data)
    run.follow(trains(21), seconds=PATIENCE_S)
    [pod] = bench.cluster.running(run.run.run_id)
    bench.cluster.lose(pod["spec"]["nodeName"])
    try:
        end = run.follow(seconds=PATIENCE_S)
    finally:
        bench.cluster.revive()
    assert end.state == "SUCCEEDED", end.row
    assert end.row["attempt"] == 2
    assert codes(run, 1) == []
    assert [e["data"]["ended"] for e in run_events(run, "requeued")] == ["node-fail"]
    assert run.outcome() == undisturbed


@pytest.mark.soak
def test_out_of_memory_goes_on_with_a_smaller_batch(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...]
) -> None:
    spot = {"at": "micro", "step": 25, "micro": 1, "rank": 1, "attempt": 1, "do": "memory"}
    run = submitted(bench, data, spots=[spot])
    end = run.follow(seconds=PATIENCE_S)
    assert end.state == "SUCCEEDED", end.row
    assert end.row["attempt"] == 2
    assert codes(run, 1) == [77]
    (claim,) = [c for c in attempts.read_claims(run.storage) if c.attempt == 2]
    assert (claim.plan.micro, claim.plan.accumulation) == (1, 6)
    samples = [row[3] for row in undisturbed[0]]
    assert [row[3] for row in run.outcome()[0]] == samples


@pytest.mark.soak
def test_a_cancel_saves_and_a_person_may_resume(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...]
) -> None:
    run = submitted(bench, data)
    run.follow(trains(3), seconds=PATIENCE_S)
    actions.cancel(run.run)
    assert run.follow(seconds=PATIENCE_S).state == "CANCELLED"
    actions.resume(run.run)
    check_end(run, undisturbed)


@pytest.mark.soak
def test_the_api_server_is_away_at_a_notice(
    bench: KubeBench, data: Path, undisturbed: tuple[Any, ...]
) -> None:
    if bench.cluster.pid_of("apiserver") is None:
        pytest.skip("QVL_TEST_NODE_PIDS does not name the API server's process")
    run = submitted(bench, data)
    run.follow(trains(3), seconds=PATIENCE_S)
    run.notify()
    bench.cluster.lose("apiserver")
    time.sleep(5.0)
    bench.cluster.revive()
    check_end(run, undisturbed)
