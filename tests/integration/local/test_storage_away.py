"""A controller process outlives a full file system, and starts what was lost under it again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.contract.resolved import CheckpointSpec
from orchestrator.controller import loop
from orchestrator.operations.status import snapshot
from tests.harness.runs import Bench, kill
from tests.harness.smalldisk import MB, Filler, SmallDisk


@pytest.fixture
def bench(tmp_path: Path, disk: SmallDisk) -> Iterator[Bench]:
    bench = Bench(tmp_path / "desk")
    yield bench
    for process in loop._detached:
        process.kill()
        process.wait()
    bench.close()


def test_a_job_that_goes_on_a_full_disk_is_started_again_when_that_is_freed(
    bench: Bench, disk: SmallDisk
) -> None:
    root = disk(8 * MB)
    job = bench.job(checkpoint=CheckpointSpec(uri=str(root), every_steps=5))
    run = bench.submit(job, step_s=0.1)
    run.until_step(6)
    run_id, registry = run.run.run_id, bench.registry
    pids = run.tree()
    filler = Filler(root, greedy=True)
    loop.detach(registry, run_id)
    controller = loop._detached[-1]
    kill(pids)
    time.sleep(25.0)
    assert controller.poll() is None, "the controller has gone"
    filler.free()
    assert controller.wait(timeout=120) == 0
    entry = registry.find(run_id)
    assert (entry.final, entry.row and entry.row["state"]) == (True, "SUCCEEDED")
    log = (registry.state_dir / "controllers" / f"{run_id}.log").read_text()
    assert len(log.splitlines()) < 20, log


def test_status_says_since_when_a_run_at_work_has_no_controller(
    bench: Bench, disk: SmallDisk
) -> None:
    root = disk(8 * MB)
    job = bench.job(checkpoint=CheckpointSpec(uri=str(root), every_steps=5))
    run = bench.submit(job, step_s=0.2)
    loop.detach(bench.registry, run.run.run_id)
    run.until_step(3)
    loop._detached[-1].kill()
    loop._detached[-1].wait()
    (seen,) = snapshot(bench.registry, SystemClock(), bench.registry.runs())
    assert seen.row["state"] == "RUNNING"
    assert seen.row["next"].startswith("no controller since ")
    assert run.drive().state == "SUCCEEDED"
