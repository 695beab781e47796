"""The local tier: a faster source where nodes may be lost, enough for a commit where not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import CheckpointSpec, ResolvedJob
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from tests.harness.runs import Bench, Driven, kill


def job(bench: Bench, survives: str) -> ResolvedJob:
    spec = CheckpointSpec(
        uri=str(bench.folder / "runs"),
        every_steps=5,
        local_dir=str(bench.folder / "disk"),
        survives=survives,
    )
    (bench.folder / "disk").mkdir(exist_ok=True)
    return replace(bench.job(), checkpoint=spec)


def tiers(run: Driven) -> list[tuple[int, str]]:
    return [(r.commit().step, r.commit().tier) for r in run.records() if r.kind == "commit"]


def copies(bench: Bench) -> list[str]:
    return sorted(p.parent.name for p in (bench.folder / "disk").rglob("manifest.json"))


def calm(bench: Bench) -> tuple[object, ...]:
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    return run.outcome()


def lost(run: Driven, *, commits: int = 1) -> None:
    """Kill everything at once after so many commits."""
    run.drive(lambda s: s.state == "RUNNING" and len(run.commits()) >= commits)
    kill(run.tree())
    run.wait_gone()


def test_where_nodes_may_be_lost_commits_are_durable_and_copies_are_a_source(
    bench: Bench,
) -> None:
    run = bench.submit(job(bench, "node"), step_s=0.3)
    run.drive(lambda _: bool(copies(bench)))
    lost(run)
    assert tiers(run)[0] == (5, "durable")
    newest = max(int(name.rpartition("-")[2]) for name in copies(bench))
    (durable,) = run.directory.glob(f"attempts/*/checkpoints/checkpoint-{newest}/rank_0.json")
    hidden = durable.rename(durable.with_suffix(".hidden"))
    run.drive(lambda s: s.row["attempt"] == 2 and s.row["step"] >= 6)
    hidden.rename(durable)
    assert not run.events("checkpoint_bad"), "read from the copy, not from the storage"
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == calm(bench)


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_lost_or_bad_copy_costs_nothing(bench: Bench, damage: str) -> None:
    run = bench.submit(job(bench, "node"), step_s=0.3)
    lost(run)
    if damage == "gone":
        shutil.rmtree(bench.folder / "disk")
        (bench.folder / "disk").mkdir()
    else:
        (file,) = (bench.folder / "disk").rglob("rank_1.json")
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert run.drive().state == "SUCCEEDED"
    (resumed,) = [e["data"] for e in run.events("resuming") if e["attempt"] == 2]
    assert resumed["step"] == 5
    assert not run.events("checkpoint_bad")
    assert run.outcome() == calm(bench)


def test_where_nodes_survive_a_local_commit_is_enough_and_is_uploaded(bench: Bench) -> None:
    run = bench.submit(job(bench, "process"), step_s=0.3)
    run.drive(lambda s: s.state == "RUNNING" and bool(run.commits()))
    run.notify("SIGTERM")
    run.until_attempt(2)
    assert run.drive().state == "SUCCEEDED"
    assert {tier for _, tier in tiers(run)} == {"local"}
    assert run.outcome() == calm(bench)
    last = checkpoints.live_commits(RunLog(run.storage).read())[-1]
    checkpoints.verify(run.storage, last)
    assert [e["data"]["step"] for e in run.events("uploaded")]


def test_a_checkpoint_that_was_lost_with_its_node_is_passed_over(bench: Bench) -> None:
    run = bench.submit(job(bench, "process"), step_s=0.3)
    run.drive(lambda _: bool(run.events("uploaded")))
    lost(run, commits=2)
    shutil.rmtree(bench.folder / "disk")
    (bench.folder / "disk").mkdir()
    newest = checkpoints.live_commits(RunLog(run.storage).read())[-1].commit()
    if checkpoints.is_there(run.storage, newest.directory):
        checkpoints.remove_files(run.storage, newest.directory)
    assert run.drive().state == "SUCCEEDED"
    (resumed,) = [e["data"] for e in run.events("resuming") if e["attempt"] == 2]
    assert resumed["step"] < newest.step
    assert [e for e in run.events("warning") if "cannot be read here" in e["data"]["message"]]
    assert run.outcome() == calm(bench)


def test_a_full_local_disk_falls_back_to_the_storage(bench: Bench) -> None:
    run = bench.submit(job(bench, "process"), step_s=0.3)
    run.until_step(1)
    for folder in Path(bench.folder / "disk").glob("qvl-*/*"):
        shutil.rmtree(folder)
        folder.write_text("no folder")
    run.until_step(7)
    run.notify("SIGTERM")
    run.until_attempt(2)
    assert [tier for _, tier in tiers(run)][:1] == ["durable"]
