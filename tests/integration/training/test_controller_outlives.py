"""Real Q-LoRA whose job is lost while its run storage is full: its controller goes on by itself."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import CheckpointSpec
from orchestrator.controller import loop
from tests.harness.runs import kill
from tests.harness.smalldisk import MB, Filler, small_disk
from tests.harness.training import EVERY, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def test_its_controller_waits_for_room_and_starts_it_again(
    bench: TrainingBench, straight: TrainingRun, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small") as disk:
        root = disk(256 * MB)
        saves = CheckpointSpec(uri=str(root), every_steps=EVERY)
        run = bench.probed(replace(bench.lasting_job(), checkpoint=saves), [])
        run.follow(lambda _: bool(run.commits()))
        pids = run.tree()
        filler = Filler(root, greedy=True)
        loop.detach(bench.registry, run.run.run_id)
        controller = loop._detached[-1]
        try:
            kill(pids)
            time.sleep(25.0)
            assert controller.poll() is None, "the controller has gone"
            filler.free()
            assert controller.wait(timeout=900) == 0
        finally:
            controller.kill()
            controller.wait()
        row = run.finish().row
        assert (row["state"], row["attempt"]) == ("SUCCEEDED", 2)
        assert_same_training(run, straight, killed=True)
