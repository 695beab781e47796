"""Storage on an object store: the verbs of the protocol over any client of such a store.

There are no folders and no caches: a listing is asked of the store each time, and nothing is
concluded from it but what lies there. `create` rests on the store's own create-if-absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from orchestrator.contract.manifest import FileEntry
from orchestrator.errors import StorageError
from orchestrator.storage.hashing import ContentHash
from orchestrator.storage.protocol import (
    Created,
    Entry,
    NotFound,
    PendingUpload,
    Sink,
    Taken,
    path_parts,
)

Body: TypeAlias = bytes | bytearray

CREATE_TRIES = 10
"""Of a create that loses against an object which is gone when it is looked at."""


@dataclass(frozen=True, slots=True)
class Found:
    """One key of a listing."""

    key: str
    size_bytes: int


class ObjectUpload(Protocol):
    """A large object being written."""

    def write(self, view: memoryview) -> None: ...

    def finish(self) -> None:
        """Make it visible, durably."""

    def abandon(self) -> None:
        """Give up; raises nothing."""


class ObjectClient(Protocol):
    """What a store must do. Retries and time-outs are its own; all errors are StorageError."""

    def get(self, key: str, patience_s: float | None = None) -> bytes:
        """patience_s: instead of the client's own; 0 = one try"""

    def chunks(self, key: str, chunk_bytes: int) -> Iterator[memoryview]: ...

    def put(self, key: str, data: Body) -> None: ...

    def put_new(self, key: str, data: bytes) -> bool:
        """False if something stands there, be it by an earlier try of this very call."""

    def list(self, prefix: str, *, deep: bool, after: str = "") -> Iterator[Found]:
        """Keys that begin with `prefix`; without those behind a further `/` unless deep.

        after: those up to this key may be left out
        """

    def delete(self, key: str) -> None: ...

    def upload(self, key: str) -> ObjectUpload: ...

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """Unfinished ones of keys (as `path`) that begin with `prefix`."""

    def abort_upload(self, key: str, upload_id: str) -> None: ...


class ObjectStorage:
    """Objects below `prefix` (empty, or ending with `/`) of a store."""

    def __init__(self, uri: str, client: ObjectClient, prefix: str) -> None:
        self._uri = uri.rstrip("/")
        self._client = client
        self._prefix = prefix

    @property
    def uri(self) -> str:
        return self._uri

    def local_path(self, path: str) -> Path | None:  # noqa: ARG002 - nothing lies here
        return None

    def get(self, path: str) -> bytes:
        return self._client.get(self._key(path))

    def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
        yield from self._client.chunks(self._key(path), chunk_bytes)

    def put(self, path: str, data: bytes) -> None:
        self._client.put(self._key(path), data)

    def create(self, path: str, data: bytes) -> Created | Taken:
        key = self._key(path)
        for _ in range(CREATE_TRIES):
            if self._put_new(key, data):
                return Created()
            try:
                there = self._client.get(key)
            except NotFound:
                continue
            return Created() if there == data else Taken(there)
        raise StorageError(f"{self._uri}/{path}: comes and goes")

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        return [*self._entries(prefix, deep=deep, after="")]

    def list_after(self, prefix: str, after: str) -> Sequence[Entry]:
        """See protocol.ListsAfter."""
        found = self._entries(prefix, deep=False, after=self._key(after))
        return [entry for entry in found if entry.path > after]

    def _entries(self, prefix: str, *, deep: bool, after: str) -> Sequence[Entry]:
        below = f"{self._key(prefix)}/" if prefix else self._prefix
        entries = [
            Entry(found.key[len(self._prefix) :], found.size_bytes)
            for found in self._client.list(below, deep=deep, after=after)
            if found.key.startswith(below) and not found.key.endswith("/")
        ]
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        self._client.delete(self._key(path))

    @contextmanager
    def write_stream(self, path: str) -> Iterator[Sink]:
        upload = self._client.upload(self._key(path))
        finished = False
        try:
            sink = _HashedSink(upload)
            yield sink
            upload.finish()
            finished = True
        finally:
            if not finished:
                upload.abandon()

    def uploads(self) -> Iterator[PendingUpload]:
        """See protocol.HasUploads."""
        for upload in self._client.uploads(self._prefix):
            if upload.path.startswith(self._prefix):
                yield replace(upload, path=upload.path[len(self._prefix) :])

    def abort_upload(self, upload: PendingUpload) -> None:
        """See protocol.HasUploads."""
        self._client.abort_upload(self._key(upload.path), upload.upload_id)

    def _put_new(self, key: str, data: bytes) -> bool:
        """As the client's; when no reply came, whether our bytes stand there after all."""
        try:
            return self._client.put_new(key, data)
        except StorageError as fault:
            try:
                there = self._client.get(key, 0.0)
            except StorageError:
                raise fault from None
            if there == data:
                return True
            raise

    def _key(self, path: str) -> str:
        return self._prefix + "/".join(path_parts(path))


class _HashedSink:
    """Hashes on the way into an upload."""

    def __init__(self, upload: ObjectUpload) -> None:
        self._upload = upload
        self._content = ContentHash()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        with self._content.beside(view):
            self._upload.write(view)
        return view.nbytes

    def flush(self) -> None:
        """Parts are sent when they are full."""

    def entry(self, path: str) -> FileEntry:
        return self._content.entry(path)
