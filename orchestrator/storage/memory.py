"""Storage in this process's memory, for tests; passes the same contract suite."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from orchestrator.contract.manifest import FileEntry
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.protocol import Created, Entry, NotFound, Sink, Taken, path_parts


class MemoryStorage:
    """Objects of one name space; instances of the same `uri` share them."""

    _spaces: ClassVar[dict[str, dict[str, bytes]]] = {}
    _lock = threading.Lock()

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        with self._lock:
            self._objects = self._spaces.setdefault(self._uri, {})

    @property
    def uri(self) -> str:
        return self._uri

    def local_path(self, path: str) -> Path | None:
        return None

    def get(self, path: str) -> bytes:
        try:
            return self._objects[_name(path)]
        except KeyError:
            raise NotFound(f"{path}: not found") from None

    def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
        data = memoryview(self.get(path))
        for start in range(0, len(data), chunk_bytes):
            yield data[start : start + chunk_bytes]

    def put(self, path: str, data: bytes) -> None:
        self._objects[_name(path)] = bytes(data)

    def create(self, path: str, data: bytes) -> Created | Taken:
        with self._lock:
            there = self._objects.setdefault(_name(path), bytes(data))
        return Created() if there == data else Taken(there)

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        if prefix:
            prefix = f"{_name(prefix)}/"
        found = [
            Entry(path, len(data))
            for path, data in list(self._objects.items())
            if path.startswith(prefix) and (deep or "/" not in path[len(prefix) :])
        ]
        return sorted(found, key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        self._objects.pop(_name(path), None)

    @contextmanager
    def write_stream(self, path: str) -> Iterator[Sink]:
        name = _name(path)
        sink = _MemorySink()
        yield sink
        self._objects[name] = sink.data()


def _name(path: str) -> str:
    return "/".join(path_parts(path))


class _MemorySink:
    def __init__(self) -> None:
        self._buffer = io.BytesIO()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        return self._buffer.write(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def data(self) -> bytes:
        return self._buffer.getvalue()

    def entry(self, path: str) -> FileEntry:
        data = self.data()
        return FileEntry(path=path, size_bytes=len(data), hash=hash_bytes(data))
