"""Real Q-LoRA on a run storage that is full for longer than the run may go on unsaved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import CheckpointSpec
from tests.harness.smalldisk import MB, Filler, small_disk
from tests.harness.training import EVERY, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def test_it_leaves_waits_and_goes_on_as_if_nothing_had_been(
    bench: TrainingBench, straight: TrainingRun, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small") as disk:
        root = disk(256 * MB)
        saves = CheckpointSpec(uri=str(root), every_steps=EVERY, max_unsaved_s=4.0)
        run = bench.probed(replace(bench.job(), checkpoint=saves), [])
        run.follow(lambda _: bool(run.commits()))
        filler = Filler(root, greedy=True)
        row = run.follow(lambda s: s.row.get("storage_wait") is not None).row
        assert (row["state"], row["reason"], row["attempt"]) == ("REQUEUED", "storage", 1)
        assert "No space left on device" in row["message"]
        filler.free()
        run.hurry()
        row = run.finish().row
        assert (row["state"], row["attempt"], row["preemptions"]) == ("SUCCEEDED", 2, 0)
        assert_same_training(run, straight, killed=True)
