"""Run directories of an earlier commit, put on S3, are read, resumed and cancelled there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.operations.actions import cancel
from tests.harness.kept import Kept

pytestmark = pytest.mark.s3


def test_they_are_read_resumed_and_cancelled(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    kept = Kept(tmp_path / "kept", s3_uri)
    assert kept.run("finished").look().state == "SUCCEEDED"
    run = kept.run("preempted")
    run.hurry()
    assert run.drive().state == "SUCCEEDED"
    assert run.outcome() == kept.run("finished").outcome()
    other = kept.run("killed")
    assert cancel(other.run)
    assert other.drive().state == "CANCELLED"
