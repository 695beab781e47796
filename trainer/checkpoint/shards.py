"""The files of one rank in one checkpoint, and the values that the commit code speaks in.

No tensors here, and no storage of its own: the fake trainer and the saver process use it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.contract import layout
from orchestrator.contract.manifest import FileEntry, ShardManifest, Trigger
from orchestrator.errors import QvlError, StorageError
from orchestrator.run_directory.records import encode_pretty
from orchestrator.storage.protocol import Sink, Storage

Dumper = Callable[[Any, Sink], object]
"""Writes a value as a file's bytes."""


class Places:
    """Directories for the checkpoints of one attempt, a new one for each try of a step.

    A write of an earlier try may reach a remote store late: it must not meet those of a later
    one. Every rank tries the same steps in the same order, so all agree without being asked.
    """

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._tries: Counter[int] = Counter()

    def next(self, step: int) -> str:
        """The directory of the next try to save `step`."""
        retry = self._tries[step]
        self._tries[step] += 1
        return layout.checkpoint_dir(self.attempt, step, retry)


class FileWriter(ABC):
    """Takes the files of one rank.

    Nothing here raises: a rank that failed must still take shard in the collectives. The
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
    def _write(self, path: str, produce: Callable[[Sink], object]) -> None: ...


ENDS_AT_ONCE = 4
"""Files that are made durable at the same time."""


class ShardWriter(FileWriter):
    """Streams the files straight into a storage, hashed on the way.

    While the disk or the store makes one file durable, the next is already written.

    copy: gets the same files, as far as it takes them
    """

    def __init__(self, storage: Storage, directory: str, copy: Storage | None = None) -> None:
        super().__init__()
        self.directory = directory
        self._storage = storage
        self._copy = copy
        self._copies: list[str] = []
        self._shard_tried = False
        self._files: dict[str, FileEntry] = {}
        self._aside = ThreadPoolExecutor(ENDS_AT_ONCE, "qvl-durable")
        self._ends: list[Future[None]] = []

    def failure(self) -> Failed | None:
        """What went wrong, if anything did. Rank 0's saver commits once it sees every shard."""
        return None if self.error is None else failed(self.error, uncertain=self._shard_tried)

    def finish(self, rank: int, digests: Digests) -> ShardManifest:
        """Make the shard manifest durable, once all files are; an error stays in `error`."""
        shard = ShardManifest(
            rank=rank,
            files=tuple(self._files[path] for path in sorted(self._files)),
            state_digest=digests.state,
            rng_digest=digests.rng,
            base=digests.base,
            base_again=digests.base_again,
        )
        self._aside.shutdown()
        with self.guard():
            for end in self._ends:
                end.result()
            if self.error is None:
                self._shard_tried = True
                path = f"{self.directory}/{layout.shard(rank)}"
                self._storage.put(path, shard_bytes(shard))
                self._copied(lambda copy: copy.put(path, shard_bytes(shard)))
        return shard

    def _write(self, path: str, produce: Callable[[Sink], object]) -> None:
        name = f"{self.directory}/{path}"
        with ExitStack() as stack:
            sink = stack.enter_context(self._storage.write_stream(name))
            produce(sink)
            self._files[path] = sink.entry(path)
            self._ends.append(self._aside.submit(stack.pop_all().close))

        def again(copy: Storage) -> None:
            self._copies.append(name)
            with copy.write_stream(name) as second:
                produce(second)

        self._copied(again)

    def _copied(self, act: Callable[[Storage], object]) -> None:
        """A copy that fails is none, and costs nothing."""
        try:
            if self._copy is not None:
                act(self._copy)
        except StorageError:
            copy, self._copy = self._copy, None
            assert copy is not None
            for name in self._copies:
                with suppress(StorageError):
                    copy.delete(name)


def shard_bytes(shard: ShardManifest) -> bytes:
    """The shard manifest as it is stored."""
    return encode_pretty(shard)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a checkpoint says of itself beyond its files; known alike on every rank."""

    step: int
    epoch: int
    samples_seen: int
    trigger: Trigger
    learning_rate_hex: str
    pending_eval: bool
    adapter_digest: str = ""
    """Known on rank 0, like the next two."""
    adapter_sha256: str = ""
    needed_bytes: int = 0
    """What the trainable state takes (see compact.needed); 0 = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Hashes of one rank's state, and of the base model where this rank computes them."""

    state: str
    rng: str
    base: str | None = None
    """At the start of the attempt."""
    base_again: str | None = None
    """After its first evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A step that stands in the log (or in the checkpoint that was resumed from)."""

    step: int
    seq: int | None
    """Number of the commit record; None if it stands in no log at hand."""
    adapter_sha256: str
    size_bytes: int = 0
    oversize: str = ""
    """What is wrong with its size, if anything: a saver that keeps more than it should."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A save that did not become a checkpoint; the last committed one still counts."""

    message: str
    storage: bool = False
    """The storage took no writes; anything else is a failure of the run's own."""
    uncertain: bool = False
    """Its commit record may stand all the same, so that its files must stay."""


def failed(fault: Exception, *, uncertain: bool = False) -> Failed:
    """The failure behind an error."""
    return Failed(describe(fault), is_of_storage(fault), uncertain)


def together(faults: Mapping[int, Failed]) -> Failed:
    """One failure out of those of several ranks."""
    return Failed(
        "; ".join(f"rank {rank}: {fault.message}" for rank, fault in faults.items()),
        all(fault.storage for fault in faults.values()),
        all(fault.uncertain for fault in faults.values()),
    )


def is_of_storage(fault: Exception) -> bool:
    """True if a storage is to blame, and the same save may succeed later."""
    cause: BaseException | None = fault
    while cause is not None and not isinstance(cause, StorageError | OSError):
        # torch.save tells of its own trouble after a sink that failed.
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def describe(fault: Exception) -> str:
    """An error in words; ours need no type name."""
    return str(fault) if isinstance(fault, QvlError) else f"{type(fault).__name__}: {fault}"
