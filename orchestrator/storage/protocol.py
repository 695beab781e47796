"""The storage protocol: few verbs, no rename, no append, no directories.

Paths are relative to the storage's root and use `/`. Everything that `put`, `create`
and a closed stream acknowledge is durable: it survives a power loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from orchestrator.contract.manifest import FileEntry
from orchestrator.errors import StorageError


class NotFound(StorageError):
    """No object of that name."""

    exit_code = 73


class Refused(StorageError):
    """The storage refuses us until somebody mends a setting: credentials, bucket, region."""

    exit_code = 78


class Damaged(StorageError):
    """The object, or what arrives of it, does not match the storage's own checksum."""


@dataclass(frozen=True, slots=True)
class Created:
    """The object did not exist and is now ours."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else's object stands there."""

    by: bytes
    """Its content."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    path: str
    size_bytes: int


class Sink(Protocol):
    """A file being written from start to end, hashed on the way."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int: ...

    def flush(self) -> None: ...

    def entry(self, path: str) -> FileEntry:
        """Size and hash of what was written; `path` as given."""


TMP = ".tmp-"
"""Begins the names of half-written objects, which no listing shows."""


def path_parts(path: str) -> list[str]:
    """The parts of a path inside a storage; StorageError for anything that could lead out."""
    parts = path.strip("/").split("/")
    unsafe = any(p in ("", ".", "..") or p.startswith(TMP) for p in parts)
    if path.startswith("/") or "\0" in path or unsafe:
        raise StorageError(f"not a path inside the storage: {path!r}")
    return parts


class Storage(Protocol):
    """A root under which objects live. All errors are StorageError, NotFound among them."""

    @property
    def uri(self) -> str: ...

    def get(self, path: str) -> bytes:
        """The whole object. NotFound if there is none."""

    def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
        """The object in chunks, each valid until the next one. NotFound at the first."""

    def put(self, path: str, data: bytes) -> None:
        """Write or replace, atomically: a reader sees the old or the new bytes."""

    def create(self, path: str, data: bytes) -> Created | Taken:
        """Write if nothing is there; exactly one of any number of racing writers wins.

        `data` must hold a token of its writer: an object equal to `data` is our own, whose
        reply was lost, and counts as Created.
        """

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        """Objects directly below `prefix` (which ends with `/` or is empty); all below if deep.

        Sorted by path. May miss an object that is being created; never decide who owns
        something by a listing.
        """

    def delete(self, path: str) -> None:
        """Remove; no error if it is not there."""

    def write_stream(self, path: str) -> AbstractContextManager[Sink]:
        """Write a large object from start to end; durable when the context ends.

        Left by an exception, nothing of that name is promised: no reader may look at it.
        """

    def local_path(self, path: str) -> Path | None:
        """Where the object lies on this machine, or None for a remote storage."""


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A large object that somebody writes, or began to write and died."""

    path: str
    upload_id: str
    begun: float
    """Seconds since the epoch, by the storage's clock."""


@runtime_checkable
class HasUploads(Protocol):
    """A storage on which a writer that died may leave an upload that no listing shows."""

    def uploads(self) -> Iterator[PendingUpload]:
        """All that are not finished."""

    def abort_upload(self, upload: PendingUpload) -> None:
        """Give one up; no error if it is not there any more."""


@runtime_checkable
class HasReserve(Protocol):
    """A storage whose room ends, and which keeps a little for small records."""

    def make_reserve(self) -> bool:
        """Make what is missing of it; False if there is no room to spare now."""

    def check_room(self, size_bytes: int) -> None:
        """Raises StorageError, in the storage's words, if so much finds no room now."""


@runtime_checkable
class ListsAfter(Protocol):
    """A storage that lists a long folder's end without its beginning."""

    def list_after(self, prefix: str, after: str) -> Sequence[Entry]:
        """As `list`, only paths that sort behind `after`."""


def list_after(storage: Storage, prefix: str, after: str) -> Sequence[Entry]:
    """Objects directly below `prefix` whose paths sort behind `after`."""
    if isinstance(storage, ListsAfter):
        return storage.list_after(prefix, after)
    return [entry for entry in storage.list(prefix) if entry.path > after]
