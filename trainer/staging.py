"""Host memory that holds one checkpoint's files of a rank, shared with its saver process.

The training loop waits only until the bytes are here; see `trainer.background`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.contract.manifest import FileEntry
from orchestrator.errors import InternalError
from orchestrator.storage.protocol import Sink
from trainer.parts import FileWriter


@dataclass(frozen=True, slots=True)
class StagedFile:
    """Where a file lies in the memory."""

    path: str
    offset: int
    size_bytes: int


class StagedWriter(FileWriter):
    """Takes files into the memory behind `fd`, one after the other, from its start."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.files: list[StagedFile] = []
        self._fd = fd
        self._end = 0

    def _write(self, path: str, produce: Callable[[Sink], object]) -> None:
        sink = _MemorySink(self._fd, self._end)
        produce(sink)
        self.files.append(StagedFile(path, self._end, sink.end - self._end))
        self._end = sink.end


class _MemorySink:
    """Written from start to end; not hashed, since nobody waits for that here."""

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self.end = start

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
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
