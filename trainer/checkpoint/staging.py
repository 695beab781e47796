"""Host memory that holds one checkpoint's files of a rank, shared with its saver process.

The training loop waits only until the state is copied; see `trainer.checkpoint.background`.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.contract.manifest import FileEntry
from orchestrator.errors import InternalError
from orchestrator.storage.protocol import Sink
from trainer.checkpoint.shards import Dumper, FileWriter


@dataclass(frozen=True, slots=True)
class StagedFile:
    """Where a file lies in the memory."""

    path: str
    offset: int
    size_bytes: int


class GivenUp(Exception):
    """Nobody waits for this save any more."""


class StagedWriter(FileWriter):
    """Takes files into the memory behind `fd`, one after the other, from its start.

    What is dumped is kept as a value, to be copied by `freeze` while training waits and
    turned into bytes by `complete` while it goes on.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.files: list[StagedFile] = []
        self.given_up = threading.Event()
        """Set from outside: `complete` ends as soon as it can."""
        self._fd = fd
        self._end = 0
        self._later: list[tuple[str, object, Dumper]] = []

    def dump(self, path: str, value: object, dumper: Dumper) -> None:
        """Keep one value, by reference."""
        self._later.append((path, value, dumper))

    def freeze(self, copy: Callable[[Any], Any]) -> None:
        """Put copies in the place of the values."""
        self._later = [(path, copy(value), dumper) for path, value, dumper in self._later]

    def complete(self) -> None:
        """Turn the values into files."""
        for path, value, dumper in self._later:
            super().dump(path, value, dumper)
        self._later.clear()

    def _write(self, path: str, produce: Callable[[Sink], object]) -> None:
        sink = _MemorySink(self._fd, self._end, self.given_up)
        produce(sink)
        self.files.append(StagedFile(path, self._end, sink.end - self._end))
        self._end = sink.end


class _MemorySink:
    """Written from start to end; not hashed, since whoever stores it does that."""

    def __init__(self, fd: int, start: int, given_up: threading.Event) -> None:
        self._fd = fd
        self._given_up = given_up
        self.end = start

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if self._given_up.is_set():
            raise GivenUp
        view = memoryview(data).cast("B")
        done = 0
        while done < view.nbytes:
            done += os.pwrite(self._fd, view[done:], self.end + done)
        self.end += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Memory needs none."""

    def entry(self, path: str) -> FileEntry:
        raise InternalError(f"{path} is hashed by whoever stores it")


def memory() -> int:
    """A file descriptor of anonymous shared memory; it grows with what is written."""
    return os.memfd_create("qvl-checkpoint", os.MFD_CLOEXEC)


def mapped(fd: int) -> mmap.mmap | None:
    """All of the memory, to be read; None while it is empty."""
    size = os.fstat(fd).st_size
    return mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None
