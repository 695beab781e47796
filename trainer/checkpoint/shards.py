"""A shard: the files of one rank in one checkpoint. Every file of a checkpoint is written here.

Two destinations: a storage (`ShardWriter`), or memory that is shared with the saver process
(`StagedWriter`), which then writes the same files into a storage. No tensors here: the fake
trainer and the saver process use it too.
"""

from __future__ import annotations

import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.contract import layout
from orchestrator.contract.manifest import FileEntry, ShardManifest
from orchestrator.errors import InternalError, StorageError
from orchestrator.run_directory.records import encode_pretty
from orchestrator.run_directory.tiers import LocalTier
from orchestrator.storage.protocol import Sink, Storage
from trainer.checkpoint.save_result import Digests, Failed, failed

Dumper = Callable[[Any, Sink], object]
"""Writes a value as a file's bytes."""

Found = TypeVar("Found")

ENDS_AT_ONCE = 4
"""Files that are made durable at the same time."""


class Directories:
    """Directories for the checkpoints of one attempt, a new one for each try of a step.

    A write of an earlier try may reach a remote store late: it must not meet those of a later
    one. Every rank tries the same steps in the same order, so all agree without being asked.
    """

    def __init__(self, attempt: int) -> None:
        self._attempt = attempt
        self._tries: Counter[int] = Counter()

    def next(self, step: int) -> str:
        """The directory of the next try to save `step`."""
        retry = self._tries[step]
        self._tries[step] += 1
        return layout.checkpoint_dir(self._attempt, step, retry)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one checkpoint go."""

    storage: Storage
    node: str | None = None
    """Whose local tier that is; None = the durable storage."""
    copy: Storage | None = None
    """Gets the same files, as far as it takes them; what is there counts for nothing."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """The durable storage and the local tier: which of them a save writes to."""

    durable: Storage
    local: LocalTier | None = None

    def place(self, *, tiered: bool, copied: bool = False) -> Place:
        """
        tiered: the local tier may be used where a copy there counts; not once a save has failed
        copied: a local tier that does not count gets a copy; not while a notice's seconds run
        """
        if self.local is not None and self.local.commits and tiered:
            return Place(self.local.storage, self.local.node)
        copies = copied and self.local is not None and not self.local.commits
        return Place(self.durable, copy=self.local.storage if copies and self.local else None)


class FileWriter(ABC):
    """Takes the files of one rank.

    Nothing here raises: a rank that failed must still take part in the collectives. The
    first error is kept, and nothing more is written after it.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def write(self, path: str, produce: Callable[[Sink], object]) -> None:
        """Take one file; `path` is relative to the checkpoint's directory."""
        with self.guard():
            if self.error is None:
                self._write(path, produce)

    def dump(self, path: str, value: object, dumper: Dumper) -> None:
        """Take one file with what `dumper` makes of `value`."""
        self.write(path, lambda sink: dumper(value, sink))

    def put(self, path: str, data: bytes) -> None:
        """Take a small file."""
        self.write(path, lambda sink: sink.write(data))

    def guard(self) -> _Guard:
        """Context that keeps an error instead of raising it."""
        return _Guard(self)

    @abstractmethod
    def aside(self, value: Any, act: Callable[[Any], Found]) -> Callable[[], Found]:
        """Have `act` look at a value, beside the writing; call what is returned for the result."""

    @abstractmethod
    def freeze(self, copy: Callable[[list[Any]], list[Any]]) -> None:
        """From here on the state may change: what is still kept by reference is copied."""

    @abstractmethod
    def _write(self, path: str, produce: Callable[[Sink], object]) -> None: ...


class ShardWriter(FileWriter):
    """Streams the files straight into a storage, hashed on the way.

    While the disk or the store makes one file durable, the next is already written.
    """

    def __init__(self, place: Place, directory: str) -> None:
        super().__init__()
        self.directory = directory
        self.place = place
        self._copy = place.copy
        self._copies: list[str] = []
        self._manifest_tried = False
        self._files: dict[str, FileEntry] = {}
        self._durable = ThreadPoolExecutor(ENDS_AT_ONCE, "qvl-durable")
        self._ends: list[Future[None]] = []

    def aside(self, value: Any, act: Callable[[Any], Found]) -> Callable[[], Found]:
        thread = ThreadPoolExecutor(1, "qvl-aside")
        found = thread.submit(lambda: act(value))
        thread.shutdown(wait=False)
        return found.result

    def freeze(self, copy: Callable[[list[Any]], list[Any]]) -> None:
        """Nothing is kept: the files are written."""

    def failure(self) -> Failed | None:
        """What went wrong, if anything did. Rank 0's saver commits once it sees every shard."""
        return None if self.error is None else failed(self.error, uncertain=self._manifest_tried)

    def finish(self, rank: int, digests: Digests) -> ShardManifest:
        """Make the shard's manifest durable, once all files are; an error stays in `error`."""
        shard = ShardManifest(
            rank=rank,
            files=tuple(self._files[path] for path in sorted(self._files)),
            state_digest=digests.state,
            rng_digest=digests.rng,
            base=digests.base,
            base_again=digests.base_again,
        )
        self._durable.shutdown()
        with self.guard():
            for end in self._ends:
                end.result()
            if self.error is None:
                self._manifest_tried = True
                path, data = f"{self.directory}/{layout.shard(rank)}", encode_pretty(shard)
                self.place.storage.put(path, data)
                self._copied(lambda copy: copy.put(path, data))
        return shard

    def _write(self, path: str, produce: Callable[[Sink], object]) -> None:
        name = f"{self.directory}/{path}"
        with ExitStack() as stack:
            sink = stack.enter_context(self.place.storage.write_stream(name))
            produce(sink)
            self._files[path] = sink.entry(path)
            self._ends.append(self._durable.submit(stack.pop_all().close))

        def again(copy: Storage) -> None:
            self._copies.append(name)
            with copy.write_stream(name) as second:
                produce(second)

        self._copied(again)

    def _copied(self, act: Callable[[Storage], object]) -> None:
        """A copy that fails is none, and costs nothing."""
        copy = self._copy
        if copy is None:
            return
        try:
            act(copy)
        except StorageError:
            self._copy = None
            for name in self._copies:
                with suppress(StorageError):
                    copy.delete(name)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """Where a file lies in the shared memory."""

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
        self._values: list[Any] = []
        self._dumps: list[tuple[str, int, Dumper]] = []
        """Path, index of the value, how it becomes bytes."""

    def dump(self, path: str, value: object, dumper: Dumper) -> None:
        """Keep one value, by reference."""
        self._dumps.append((path, len(self._values), dumper))
        self._values.append(value)

    def aside(self, value: Any, act: Callable[[Any], Found]) -> Callable[[], Found]:
        index = len(self._values)
        self._values.append(value)
        return lambda: act(self._values[index])

    def freeze(self, copy: Callable[[list[Any]], list[Any]]) -> None:
        """Put copies in the place of the values."""
        with self.guard():
            self._values = copy(self._values)

    def complete(self) -> None:
        """Turn the values into files."""
        for path, index, dumper in self._dumps:
            super().dump(path, self._values[index], dumper)
        self._dumps.clear()

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


def shared_memory() -> int:
    """A file descriptor of anonymous shared memory; it grows with what is written."""
    return os.memfd_create("qvl-checkpoint", os.MFD_CLOEXEC)


def mapped(fd: int) -> mmap.mmap | None:
    """All of the memory, to be read; None while it is empty."""
    size = os.fstat(fd).st_size
    return mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else None


class _Guard:
    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._writer.error = self._writer.error or fault
        return True
