"""Any other store for which fsspec has a file system that can create exclusively.

Caches are off; retries and time-outs are the file system's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec

from orchestrator.errors import StorageError
from orchestrator.storage.object_store.store import Body, Found
from orchestrator.storage.protocol import NotFound, PendingUpload

BLOCK_BYTES = 16 << 20
_NOTHING_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
"""The last is what fsspec's memory says of a name below a file."""


class FsspecClient:
    """Objects below `root` of a file system (an `objects.ObjectClient`)."""

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    @classmethod
    def of(cls, scheme: str, root: str) -> FsspecClient:
        """Raises ImportError if the library of `scheme` is not installed."""
        options = {"skip_instance_cache": True, "use_listings_cache": False}
        return cls(fsspec.filesystem(scheme, **options), root)

    def get(self, key: str, patience_s: float | None = None) -> bytes:  # noqa: ARG002
        with self._translated(key):
            return bytes(self._files.cat_file(self._at(key)))

    def chunks(self, key: str, chunk_bytes: int) -> Iterator[memoryview]:
        with self._translated(key), self._files.open(self._at(key), "rb") as file:
            while chunk := file.read(chunk_bytes):
                yield memoryview(chunk)

    def put(self, key: str, data: Body) -> None:
        with self._translated(key):
            self._files.pipe_file(self._at(key), bytes(data))

    def put_new(self, key: str, data: bytes) -> bool:
        with self._translated(key):
            try:
                self._files.pipe_file(self._at(key), data, mode="create")
            except FileExistsError:
                return False
            return True

    def list(self, prefix: str, *, deep: bool, after: str = "") -> Iterator[Found]:  # noqa: ARG002
        with self._translated(prefix):
            folder = self._at(prefix).rstrip("/")
            depth = None if deep else 1
            found = self._files.find(folder, maxdepth=depth, detail=True)
        start = len(self._files._strip_protocol(self._root).strip("/")) + 1
        for name, info in found.items():
            yield Found(name.strip("/")[start:], int(info["size"] or 0))

    def delete(self, key: str) -> None:
        with self._translated(key), suppress(FileNotFoundError):
            self._files.rm_file(self._at(key))

    def upload(self, key: str) -> _Upload:
        with self._translated(key):
            return _Upload(self, self._files.open(self._at(key), "wb", block_size=BLOCK_BYTES), key)

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:  # noqa: ARG002
        """Left to the store's own rules."""
        return iter(())

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Never called: `uploads` names none."""

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except _NOTHING_THERE as fault:
            raise NotFound(f"{key}: not found") from fault
        except (OSError, NotImplementedError, ValueError) as fault:
            raise StorageError(f"{key}: {fault or type(fault).__name__}") from fault


class _Upload:
    def __init__(self, client: FsspecClient, file: Any, key: str) -> None:
        self._client = client
        self._file = file
        self._key = key

    def write(self, view: memoryview) -> None:
        with self._client._translated(self._key):
            self._file.write(view)

    def finish(self) -> None:
        with self._client._translated(self._key):
            self._file.close()

    def abandon(self) -> None:
        with suppress(OSError, NotImplementedError, AttributeError):
            self._file.discard()
