"""The one hash of file contents: BLAKE3, written `blake3:<hex>`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from blake3 import blake3

from orchestrator.contract.manifest import FileEntry
from orchestrator.errors import InternalError

BESIDE_BYTES = 1 << 20
"""From this size on, hashing takes long enough to be worth a thread."""


class ContentHash:
    """Size and hash of a stream of bytes."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._hash.update(data)
        self.size_bytes += len(data) if not isinstance(data, memoryview) else data.nbytes

    @contextmanager
    def beside(self, view: memoryview) -> Iterator[None]:
        """Take `view` while the block does something else with it that waits or copies."""
        end = self.size_bytes + view.nbytes
        if view.nbytes < BESIDE_BYTES:
            self.update(view)
            yield
            return
        thread = threading.Thread(target=self.update, args=(view,), name="qvl-hash", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if self.size_bytes != end:
            raise InternalError("hashing failed in its thread")

    def entry(self, path: str) -> FileEntry:
        return FileEntry(
            path=path, size_bytes=self.size_bytes, hash=f"blake3:{self._hash.hexdigest()}"
        )


def hash_bytes(data: bytes) -> str:
    """`blake3:<hex>` of `data`."""
    return f"blake3:{blake3(data).hexdigest()}"


def sha256(data: bytes | Iterable[memoryview]) -> str:
    """SHA-256 (hex), for what people compare with other tools; of bytes or of a stream."""
    total = hashlib.sha256()
    for chunk in [data] if isinstance(data, bytes) else data:
        total.update(chunk)
    return total.hexdigest()
