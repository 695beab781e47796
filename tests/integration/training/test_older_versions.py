"""A real training that an earlier commit began goes on with the code of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.operations.actions import resume
from tests.harness import jobs
from tests.harness.kept import TRAINING, Kept

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def test_it_goes_on_from_the_checkpoint_of_the_earlier_commit(tmp_path: Path) -> None:
    kept = Kept(tmp_path, archive_file=TRAINING)
    jobs.write_data(tmp_path / "data")
    jobs.make_model(tmp_path / "data")
    run = kept.run("training")
    assert run.commits() == [(1, 1, "notice")]
    run.hurry()
    held = run.drive(seconds=600)
    assert held.row["next"].endswith("--allow-change data.media"), "the pictures lie elsewhere now"
    resume(run.run, allow_change=["data.media"])
    end = run.drive(seconds=600)
    assert end.state == "SUCCEEDED", end.row["message"]
    assert run.events("resuming")[0]["data"]["step"] == 1
    assert sorted(run.curve()) == [1, 2, 3, 4, 5, 6]
