"""Real Q-LoRA training of the tiny model, disturbed by Slurm: the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.resolved import ResolvedJob, Resources
from orchestrator.operations.actions import resume
from orchestrator.run_directory import attempts
from tests.harness import jobs
from tests.harness.runs import Bench, Driven, saved_all
from tests.harness.slurm_runs import SlurmBench, causes, job_id
from tests.integration.slurm.test_nodes import first_node, kill_node

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

PATIENCE_S = 400.0


@dataclass(frozen=True)
class Calm:
    """A job on two ranks, and what it computes undisturbed on this host."""

    job: ResolvedJob
    outcome: tuple[Any, ...]


def undisturbed(job: ResolvedJob, folder: Path) -> tuple[Any, ...]:
    bench = Bench(folder, module="trainer")
    run = bench.submit(job)
    assert run.drive(seconds=PATIENCE_S).state == "SUCCEEDED", run.logs()
    bench.close()
    return run.outcome()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    jobs.write_data(folder)
    jobs.make_model(folder)
    return folder


@pytest.fixture(scope="module")
def longer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """Long enough for what takes Slurm a while."""
    job = jobs.job(data, every_steps=10, max_steps=60)
    return Calm(job, undisturbed(job, tmp_path_factory.mktemp("longer") / "bench"))


def submit(bench: SlurmBench, job: ResolvedJob, *, nodes: int = 1, **changes: Any) -> Driven:
    """The job on Slurm, its two ranks on one node or two."""
    bench.module = "tests.harness.probe"
    shape = Resources(nodes=nodes, gpus_per_node=2 // nodes, time_limit_s=900)
    settings = {"backend": "slurm", "slurm": {"partition": "preemptible"}, "resources": shape}
    return bench.submit(replace(job, **{**settings, **changes}))


def until_trained(run: Driven, step: int) -> None:
    run.drive(lambda s: s.row["step"] >= step and s.state == "RUNNING", seconds=PATIENCE_S)


def finish(run: Driven) -> dict[str, Any]:
    end = run.drive(seconds=PATIENCE_S)
    assert end.state == "SUCCEEDED", (end.row, run.logs())
    return end.row


@pytest.mark.parametrize("nodes", [1, 2])
def test_preempted_it_is_the_same_bit_for_bit(bench: SlurmBench, longer: Calm, nodes: int) -> None:
    run = submit(bench, longer.job, nodes=nodes)
    until_trained(run, 3)
    bench.cluster.take_nodes()
    row = finish(run)
    assert (row["attempt"], row["lost_steps"]) == (2, 0)
    assert bench.started_again(run, 1)
    assert causes(run) == ["preempted"]
    assert saved_all(run)
    assert run.outcome() == longer.outcome


@contextmanager
def settings(bench: SlurmBench, **lines: str) -> Iterator[None]:
    """Other lines of slurm.conf for a while."""
    bench.cluster.reconfigure(**lines)
    try:
        yield
    finally:
        bench.cluster.reconfigure()


@contextmanager
def preempted_with_the_jobs_own_signal(bench: SlurmBench, run: Driven) -> Iterator[None]:
    with settings(bench, SlurmctldParameters="preempt_send_user_signal"):
        bench.cluster.take_nodes()
        yield
    # "preempted": Slurm's own moment of the kill, which is earlier than the job file believes.
    assert {e["data"]["reason"] for e in run.events("notice")} == {"SIGUSR1", "preempted"}


@contextmanager
def preempted_where_the_exit_code_requeues(bench: SlurmBench, run: Driven) -> Iterator[None]:
    with settings(bench, RequeueExit="75"):
        bench.cluster.take_nodes()
        yield
    assert causes(run) == ["preempted"]


@contextmanager
def requeued_by_hand(bench: SlurmBench, run: Driven) -> Iterator[None]:
    bench.cluster.client("scontrol", "requeue", job_id(run))
    yield
    assert causes(run) == ["requeued"]


@contextmanager
def slurmctld_dies_in_the_grace(bench: SlurmBench, run: Driven) -> Iterator[None]:
    bench.cluster.take_nodes()
    run.drive(lambda _: bool(run.events("notice")))
    bench.cluster.kill("slurmctld")
    run.drive(lambda s: s.state == "UNKNOWN")
    bench.cluster.start_controller()
    yield


@contextmanager
def its_node_dies(bench: SlurmBench, run: Driven) -> Iterator[None]:
    node = first_node(bench.cluster, run)
    kill_node(bench.cluster, node)
    try:
        yield
    finally:
        bench.cluster.start_node(node)


Story = Callable[[SlurmBench, Driven], Any]
WITH_NOTICE: list[Story] = [
    preempted_with_the_jobs_own_signal,
    preempted_where_the_exit_code_requeues,
    requeued_by_hand,
    slurmctld_dies_in_the_grace,
]


@pytest.mark.soak
@pytest.mark.parametrize("story", [*WITH_NOTICE, its_node_dies], ids=lambda s: s.__name__)
def test_whatever_happens_it_is_the_same_bit_for_bit(
    bench: SlurmBench, longer: Calm, story: Story
) -> None:
    """Nothing is lost with a notice; without one, at most what came after the last checkpoint."""
    run = submit(bench, longer.job)
    until_trained(run, 12)
    with story(bench, run):
        row = finish(run)
    assert row["attempt"] == 2
    assert bench.started_again(run, 1)
    if story in WITH_NOTICE:
        assert row["lost_steps"] == 0
        assert saved_all(run)
    assert run.outcome() == longer.outcome


@pytest.mark.soak
def test_without_any_grace_the_kill_wait_is_enough(bench: SlurmBench, longer: Calm) -> None:
    run = submit(bench, longer.job, slurm={"partition": "nograce"})
    until_trained(run, 12)
    bench.cluster.take_nodes()
    row = finish(run)
    assert (row["attempt"], row["lost_steps"]) == (2, 0)
    assert bench.started_again(run, 1)
    assert run.outcome() == longer.outcome


@pytest.mark.soak
def test_a_save_longer_than_the_kill_wait_loses_one_interval(
    bench: SlurmBench, longer: Calm
) -> None:
    """A save at a notice takes a minute; those of every tenth step do not."""
    slow = {"at": "save", "rank": 0, "attempt": 1, "do": "sleep", "seconds": 60}
    spots = [{**slow, "step": step} for step in range(1, 60) if step % 10]
    run = submit(
        bench,
        longer.job,
        slurm={"partition": "nograce"},
        env={**longer.job.env, "QVL_PROBE": json.dumps(spots)},
    )
    until_trained(run, 13)
    bench.cluster.take_nodes()
    row = finish(run)
    assert row["attempt"] == 2
    assert bench.started_again(run, 1)
    assert not [c for c in run.commits() if c[0] == 1 and c[1] % 10]
    assert 0 <= row["lost_steps"] <= 10
    assert run.outcome() == longer.outcome


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["training", "notice", "waiting"])
def test_a_scancel_saves_and_is_final_until_a_person_resumes(
    bench: SlurmBench, longer: Calm, moment: str
) -> None:
    run = submit(bench, longer.job)
    until_trained(run, 12)
    if moment != "training":
        bench.cluster.take_nodes(10.0)
    if moment == "notice":
        run.drive(lambda _: bool(run.events("notice")))
    if moment == "waiting":
        bench.until_state(run, "PENDING")
    bench.cluster.client("scancel", job_id(run))
    end = run.drive(seconds=PATIENCE_S)
    assert end.state == "CANCELLED", end.row
    assert saved_all(run)
    # A short save may have asked for its requeue before the scancel came.
    possible = {"training": (0,), "notice": (0, 1), "waiting": (1,)}[moment]
    assert any(bench.started_again(run, count) for count in possible)
    resume(run.run)
    row = finish(run)
    assert (row["attempt"], row["lost_steps"]) == (2, 0)
    assert run.outcome() == longer.outcome


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_at_the_time_limit_it_is_the_same_bit_for_bit(
    bench: SlurmBench, data: Path, tmp_path: Path
) -> None:
    """Slow steps outlast the limit; how many starts they take is for Slurm to choose."""
    job = jobs.job(data, every_steps=50, max_steps=300)
    calm = undisturbed(job, tmp_path / "undisturbed")
    shape = Resources(nodes=1, gpus_per_node=2, time_limit_s=120)
    slow = {"at": "boundary", "rank": 0, "do": "sleep", "seconds": 0.5}
    spots = json.dumps([{**slow, "step": step} for step in range(1, 300)])
    run = submit(bench, job, resources=shape, env={**job.env, "QVL_PROBE": spots})
    row = finish(run)
    starts = len(attempts.read_claims(run.storage))
    assert starts >= 2
    assert bench.started_again(run, starts - 1)
    assert causes(run) == ["time-limit"] * (starts - 1)
    assert row["lost_steps"] == 0
    assert run.outcome() == calm
