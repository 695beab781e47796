"""Files of a part become durable side by side, and none is forgotten."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Sink
from trainer.checkpoint.save_result import Digests
from trainer.checkpoint.shards import ENDS_AT_ONCE, Place, ShardWriter

DIGESTS = Digests(state="s", rng="r")
NAMES = [f"file-{n}" for n in range(ENDS_AT_ONCE)]


class Slow(MemoryStorage):
    """Makes a file durable when as many more as may be are waiting for the same."""

    def __init__(self, broken: str = "") -> None:
        super().__init__(f"memory://{secrets.token_hex(8)}")
        self.together = threading.Barrier(ENDS_AT_ONCE)
        self.broken = broken

    @contextmanager
    def write_stream(self, path: str) -> Iterator[Sink]:
        with super().write_stream(path) as sink:
            yield sink
            self.together.wait(10.0)
            if path.endswith(self.broken or "\0"):
                raise StorageError(f"{path}: no space left")


def written(storage: Any) -> ShardWriter:
    writer = ShardWriter(Place(storage), "dir")
    for name in NAMES:
        writer.put(name, name.encode())
    return writer


def test_files_become_durable_side_by_side_and_before_the_part_s_manifest() -> None:
    storage = Slow()
    writer = written(storage)
    part = writer.finish(0, DIGESTS)
    assert writer.error is None
    assert [f.path for f in part.files] == NAMES
    assert [e.path for e in storage.list("dir", deep=True)] == [
        *(f"dir/{name}" for name in NAMES), "dir/parts/0.json",
    ]  # fmt: skip


def test_one_file_that_does_not_become_durable_fails_the_part() -> None:
    storage = Slow(broken=NAMES[1])
    writer = written(storage)
    writer.finish(0, DIGESTS)
    assert "file-1: no space left" in str(writer.error)
    assert not [e for e in storage.list("dir", deep=True) if "parts/" in e.path]
    assert not [t for t in threading.enumerate() if t.name.startswith("qvl-durable")]
