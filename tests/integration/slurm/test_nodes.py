"""Nodes that die, starts that are stale, and a scheduler that forgets."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run_directory import attempts
from tests.harness.runs import Driven, kill
from tests.harness.slurm_cluster import Cluster
from tests.harness.slurm_runs import SlurmBench, job_id
from tests.integration.slurm.test_preemption import STEP_S, check_end

pytestmark = pytest.mark.slurm


def kill_node(cluster: Cluster, node: str) -> None:
    """As if its power had gone: the node daemon and everything on it, no farewell.

    All are stopped first: none may see another one die and report it.
    """
    cluster.kill(node)
    steps, tasks = processes_of(cluster, node)
    kill([*steps, *tasks], signal.SIGSTOP)
    kill([*steps, *tasks])


def processes_of(cluster: Cluster, node: str) -> tuple[list[int], list[int]]:
    """Step daemons and tasks (batch scripts too) of a node."""
    marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={cluster.conf}".encode()}
    tasks = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                tasks.append(int(folder.name))
    parents = {int(Path(f"/proc/{t}/stat").read_text().rsplit(")", 1)[1].split()[1]) for t in tasks}
    steps = [p for p in parents if Path(f"/proc/{p}/comm").read_text().startswith("slurmstepd")]
    return steps, tasks


def first_node(cluster: Cluster, run: Driven) -> str:
    return cluster.job(job_id(run))["BatchHost"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_dies(bench: SlurmBench, calm: tuple[Any, ...], nodes: int) -> None:
    """Slurm itself starts the job again, from the newest checkpoint that was durable."""
    run = bench.submit(bench.job(nodes=nodes), step_s=STEP_S)
    run.until_step(7)
    node = first_node(bench.cluster, run) if nodes == 1 else "qn2"
    kill_node(bench.cluster, node)
    try:
        check_end(bench, run, calm)
    finally:
        bench.cluster.start_node(node)
    first = attempts.read_verdicts(run.storage, 1)
    assert all(v.code != 0 for v in first)
    saved = max((step for a, step, _ in run.commits() if a == 1), default=0)
    resumed = [e["data"]["step"] for e in run.events("resuming")]
    assert resumed == ([saved] if saved else []), "nothing that was durable is computed again"


def test_a_finished_run_that_is_started_again_does_nothing(bench: SlurmBench) -> None:
    run = bench.submit(step_s=0.01)
    assert run.drive().state == "SUCCEEDED"
    bench.until_state(run, "COMPLETED")
    before = run.records(), attempts.read_claims(run.storage)
    bench.cluster.client("scontrol", "requeue", job_id(run))
    bench.until_state(run, "RUNNING")
    bench.until_state(run, "COMPLETED")
    assert (run.records(), attempts.read_claims(run.storage)) == before
    assert bench.cluster.job(job_id(run))["ExitCode"] == "0:0"


def test_submitting_twice_under_one_key_makes_one_job(bench: SlurmBench) -> None:
    run = bench.submit(step_s=0.01)
    record = attempts.read_submissions(run.storage)[0]
    backend = run.run.backend
    submission = backend.prepare(run.run.job(), record.spec)
    assert backend.submit(submission, record.key) == run.job()
    assert run.drive().state == "SUCCEEDED"
    assert backend.submit(submission, record.key) == run.job(), "found even when it has ended"


def test_a_crash_is_left_to_the_controller(bench: SlurmBench) -> None:
    """No requeue by the job itself: the back-off and the budget are the controller's."""
    run = bench.submit(step_s=0.05, crash_at="7:1")
    bench.until_state(run, "FAILED")
    assert bench.restarts(run) == 0
    step = run.look()
    assert step.state == "REQUEUED"
    assert step.row["next"].startswith("next attempt in")
    run.hurry()
    run.look()
    assert len(attempts.read_submissions(run.storage)) == 2


def test_out_of_memory_starts_again_at_once_with_a_smaller_batch(bench: SlurmBench) -> None:
    run = bench.submit(step_s=0.05, oom_at="7:1")
    bench.until_state(run, "FAILED", seconds=60.0)
    claims = attempts.read_claims(run.storage)
    assert [(c.plan.micro, c.plan.accumulation) for c in claims] == [(2, 2), (1, 4)]
    assert bench.restarts(run) == 1, "at the floor it is a failure"
