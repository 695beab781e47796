"""A run storage without room: what fails, what is said of it, and that the run goes on by itself.

The storage is a file system of its own, in memory and of a size that the test chooses.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.controller import status_rows
from orchestrator.errors import StorageError
from orchestrator.operations.status import refresh
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.reserve import try_writing
from tests.harness.runs import Bench, Driven, kill, saved_all, wait_gone
from tests.harness.smalldisk import MB, Filler, SmallDisk
from tests.harness.waiting import until

NO_SPACE = "No space left on device"


@pytest.fixture
def bench(tmp_path: Path, disk: SmallDisk) -> Iterator[Bench]:
    """Before the file system goes, the processes on it."""
    bench = Bench(tmp_path / "bench")
    yield bench
    bench.close()


def job(bench: Bench, root: Path, *, steps: int = 400, **checkpoint: Any) -> ResolvedJob:
    """`steps` steps with a save every 20."""
    job = bench.job()
    return replace(
        job,
        training={**job.training, "max_steps": steps},
        checkpoint=replace(job.checkpoint, uri=str(root), every_steps=20, **checkpoint),
    )


def calm(bench: Bench, steps: int = 400) -> tuple[object, ...]:
    run = bench.submit(job(bench, bench.folder / "roomy", steps=steps))
    assert run.drive().state == "SUCCEEDED"
    return run.outcome()


def shown(run: Driven) -> dict[str, Any]:
    """The row that `status` shows."""
    entry = run.run.registry.find(run.run.run_id)
    clock = SystemClock()
    return status_rows.public_row(refresh(run.run.registry, clock, entry).row, clock.now())


def until_reserved(run: Driven) -> None:
    """The run's reserve is whole: without it no event is stored once the disk is full."""
    until(lambda: len(list((run.directory / layout.RESERVE).glob("*"))) == 33)


def loose(run: Driven) -> dict[str, int]:
    """Bytes in directories of checkpoints that no commit names."""
    return checkpoints.leftovers(run.storage, RunLog(run.storage).read(), 1000)


def test_a_run_whose_storage_is_full_stops_waits_and_goes_on(bench: Bench, disk: SmallDisk) -> None:
    root = disk(10 * MB)
    run = bench.submit(job(bench, root, max_unsaved_s=2.0), step_s=0.02, ballast=3 * MB // 2)
    row = run.drive(lambda s: shown(run)["save_fault"] is not None).row
    assert NO_SPACE in shown(run)["save_fault"]["message"]
    assert row["state"] == "RUNNING"
    row = run.drive(lambda s: s.row.get("storage_wait") is not None).row
    run.wait_gone()
    assert loose(run) == {}, "the room of what failed is free"
    assert (row["state"], row["reason"]) == ("REQUEUED", "storage")
    assert NO_SPACE in row["message"]
    assert "tried again" in shown(run)["next"]
    reached = row["step"]
    saved = run.commits()[-1][1]
    assert reached > saved
    attempts_before = row["attempt"]
    for _ in range(5):
        assert run.look().row["attempt"] == attempts_before, "submitted although nothing fits"
    disk(64 * MB)
    run.hurry()
    row = run.drive(seconds=120).row
    assert row["state"] == "SUCCEEDED"
    assert row["attempt"] == attempts_before + 1
    assert row["lost_steps"] == reached - saved
    assert row["lost_exact"]
    assert row["save_fault"] is None
    assert run.outcome() == calm(bench)


def saved(run: Driven, attempt: int, step: int) -> bool:
    return any(a == attempt and s >= step for a, s, _ in run.commits())


@pytest.mark.parametrize("inodes", [False, True], ids=["blocks", "inodes"])
def test_a_storage_that_is_full_for_a_while_costs_those_saves_and_nothing_else(
    bench: Bench, disk: SmallDisk, inodes: bool
) -> None:
    root = disk(64 * MB, 1000)
    run = bench.submit(job(bench, root, steps=200), step_s=0.04, ballast=MB)
    run.drive(lambda s: saved(run, 1, 20))
    until_reserved(run)
    filler = Filler(root, inodes=inodes)
    run.drive(lambda s: shown(run)["save_fault"] is not None)
    at = shown(run)
    assert NO_SPACE in at["save_fault"]["message"]
    until(lambda: shown(run)["step"] > at["step"] + 5)
    filler.free()
    before = run.commits()[-1][1]
    run.drive(lambda s: saved(run, 1, before + 1))
    until(lambda: shown(run)["save_fault"] is None)
    assert run.drive().state == "SUCCEEDED"
    assert {a for a, _, _ in run.commits()} == {1}
    assert loose(run) == {}
    assert run.outcome() == calm(bench, 200)


def test_a_notice_on_a_full_storage_is_a_preemption_though_no_verdict_is_stored(
    bench: Bench, disk: SmallDisk
) -> None:
    root = disk(64 * MB)
    chosen = job(bench, root, steps=200)
    chosen = replace(chosen, preemption=replace(chosen.preemption, grace_s=6.0))
    run = bench.submit(chosen, step_s=0.04, ballast=MB)
    run.drive(lambda s: saved(run, 1, 20) and s.row["step"] >= 25)
    shutil.rmtree(run.directory / layout.RESERVE)
    filler = Filler(root, greedy=True)
    time.sleep(0.5)
    family = run.tree()
    run.notify("SIGTERM")
    wait_gone(family, 40.0)
    # A stop request may have found the room that a failed save had just given back.
    assert attempts.read_verdicts(run.storage, 1) == []
    row = run.drive(lambda s: s.row.get("storage_wait") is not None).row
    assert (row["state"], row["attempt"], row["preemptions"]) == ("REQUEUED", 1, 1)
    assert NO_SPACE in row["message"]
    filler.free()
    run.hurry()
    row = run.drive().row
    assert (row["state"], row["attempt"], row["preemptions"]) == ("SUCCEEDED", 2, 1)
    assert run.outcome() == calm(bench, 200)


def test_a_notice_waits_for_room_as_long_as_the_grace_time_allows(
    bench: Bench, disk: SmallDisk
) -> None:
    root = disk(64 * MB)
    run = bench.submit(job(bench, root, steps=200), step_s=0.04, ballast=MB)
    run.drive(lambda s: saved(run, 1, 20) and s.row["step"] >= 25)
    filler = Filler(root)
    run.notify("SIGTERM")
    time.sleep(2.0)
    filler.free()
    run.until_attempt(2)
    assert run.commits()[-1][2] in ("notice", "interval")
    assert saved_all(run)
    assert run.drive().state == "SUCCEEDED"


def test_the_last_step_waits_for_room(bench: Bench, disk: SmallDisk) -> None:
    root = disk(64 * MB)
    run = bench.submit(job(bench, root, steps=30, max_unsaved_s=60.0), step_s=0.2, ballast=MB)
    run.drive(lambda s: saved(run, 1, 20))
    until_reserved(run)
    filler = Filler(root)
    until(lambda: any(e["data"]["step"] == 30 for e in run.events("save_failed")))
    filler.free()
    row = run.drive().row
    assert (row["state"], row["attempt"]) == ("SUCCEEDED", 1)
    assert run.outcome() == calm(bench, 30)


def test_an_attempt_that_finds_a_full_storage_waits_outside_and_spends_nothing(
    bench: Bench, disk: SmallDisk
) -> None:
    """Not even a claim finds room: no attempt is counted, however often it is tried."""
    root = disk(64 * MB)
    run = bench.submit(job(bench, root, steps=100), step_s=0.04)
    run.drive(lambda s: saved(run, 1, 20))
    kill(run.tree())
    shutil.rmtree(run.directory / layout.RESERVE, ignore_errors=True)
    filler = Filler(root, greedy=True)
    run.hurry()
    for _ in range(3):
        with suppress(StorageError):
            run.look()
    filler.free()
    row = run.drive().row
    assert row["state"] == "SUCCEEDED"
    assert run.outcome() == calm(bench, 100)


def test_what_a_try_finds_is_what_a_save_needs(disk: SmallDisk) -> None:
    storage = PosixStorage(disk(8 * MB) / "run")
    storage.put("resolved.json", b"{}")
    try_writing(storage, 4 * MB)
    with pytest.raises(StorageError, match=NO_SPACE):
        try_writing(storage, 16 * MB)
    assert [e.path for e in storage.list("", deep=True)] == ["resolved.json"]


def test_a_failed_stream_leaves_nothing_on_a_full_file_system(disk: SmallDisk) -> None:
    root = disk(4 * MB)
    storage = PosixStorage(root / "run")
    free = os.statvfs(root).f_bavail
    with pytest.raises(StorageError, match=NO_SPACE), storage.write_stream("a/b/c") as sink:
        for _ in range(8):
            sink.write(bytes(MB))
    assert os.statvfs(root).f_bavail >= free - 2
    assert list((root / "run").rglob("*")) == []
