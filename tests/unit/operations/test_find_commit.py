"""Which commit a person means by a step, a name or a directory."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.errors import CheckpointError
from orchestrator.operations.actions import find_commit
from orchestrator.run_directory.checkpoints import live_commits
from orchestrator.run_directory.runlog import LogRecord, RunLog
from orchestrator.storage.memory import MemoryStorage
from tests.unit.run_directory import fakes


@pytest.fixture
def live(memory: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> list[LogRecord]:
    """Steps 10, 20 (by a second try) and 120."""
    log = RunLog(memory)
    log.append("fence", 1)
    fakes.commit(memory, log, 10)
    plain = layout.checkpoint_dir

    def second(attempt: int, step: int, **_: Any) -> str:
        return plain(attempt, step, retry=1)

    with monkeypatch.context() as patch:
        patch.setattr(layout, "checkpoint_dir", second)
        fakes.commit(memory, log, 20)
    fakes.commit(memory, log, 120)
    return live_commits(log.read())


@pytest.mark.parametrize(
    ("ref", "step"),
    [
        ("10", 10),
        ("checkpoint-10", 10),
        ("20", 20),
        ("checkpoint-20", 20),
        ("checkpoint-20.1", 20),
        ("attempts/000001/checkpoints/checkpoint-20.1", 20),
        ("120", 120),
    ],
)
def test_step_name_and_directory(live: list[LogRecord], ref: str, step: int) -> None:
    assert find_commit(live, ref).commit().step == step


@pytest.mark.parametrize("ref", ["30", "checkpoint-2", "checkpoint-10.1", "latest-10"])
def test_what_is_not_there(live: list[LogRecord], ref: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_commit(live, ref)
