"""Nothing half-written stays in the directory of a run that has ended."""

from __future__ import annotations

import os
import time

import pytest

from orchestrator.controller import leftovers
from orchestrator.errors import StorageError
from orchestrator.run_directory.checkpoints import live_commits, verify
from orchestrator.run_directory.runlog import RunLog
from tests.harness.runs import Bench


@pytest.mark.parametrize("ends", ["SUCCEEDED", "CANCELLED"])
def test_the_end_of_a_run_removes_what_its_saves_left(bench: Bench, ends: str) -> None:
    run = bench.submit(step_s=0.05)
    run.until_step(6)
    checkpoints = run.directory / "attempts/000001/checkpoints"
    half = checkpoints / "checkpoint-3"
    half.mkdir(parents=True, exist_ok=True)
    (half / "adapter_model.safetensors").write_bytes(b"x")
    (checkpoints / ".tmp-0123456789abcdef").write_bytes(b"x")
    young, old = run.directory / "log/.tmp-aaaa", run.directory / "log/.tmp-bbbb"
    for path in (young, old):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 200_000, time.time() - 200_000))
    if ends == "CANCELLED":
        run.run.storage.create("tombstone", b"{}")
        run.cancel_job()
    assert run.drive().state == ends
    assert not half.exists()
    left = [p.name for p in run.directory.rglob(".tmp-*")]
    assert ".tmp-0123456789abcdef" not in left
    assert ".tmp-bbbb" not in left
    for record in live_commits(RunLog(run.storage).read()):
        verify(run.storage, record)


def test_what_cannot_be_removed_is_told_and_the_run_ends_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("not yours")

    monkeypatch.setattr(leftovers.checkpoints, "leftovers", refuse)
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    told = [f.read_text() for f in (run.directory / "events").rglob("*.jsonl")]
    assert any("not all that saves left was removed: not yours" in text for text in told)
