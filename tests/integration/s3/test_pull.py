"""`checkpoints pull` from a real S3 server: verified on the way, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import CheckpointError
from orchestrator.operations.checkpoints import pull
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.opening import open_storage
from tests.unit.run_directory import fakes

pytestmark = pytest.mark.s3


def test_a_copy_is_verified_and_appears_whole(s3_uri: str, tmp_path: Path) -> None:
    storage = open_storage(s3_uri)
    record = fakes.commit(storage, RunLog(storage), 10)
    run: Any = SimpleNamespace(storage=storage)
    read: list[str] = []
    copy = pull(run, record, tmp_path / "out", lambda file: read.append(file.path))
    assert copy == tmp_path / "out" / "checkpoint-10"
    for name, data in fakes.contents(1, 10).items():
        assert (copy / name).read_bytes() == data
    assert sorted(read) == sorted(fakes.contents(1, 10))
    storage.put(f"{record.commit().directory}/scheduler.pt", b"?")
    with pytest.raises(CheckpointError, match="scheduler.pt has 1 bytes instead of"):
        pull(run, record, tmp_path / "other", lambda _: None)
    assert os.listdir(tmp_path / "other") == []
