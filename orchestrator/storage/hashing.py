"""The one hash of file contents: BLAKE3, written `blake3:<hex>`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from blake3 import blake3

from orchestrator.contract.manifest import FileEntry


class ContentHash:
    """Size and hash of a stream of bytes."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._hash.update(data)
        self.size_bytes += len(data) if not isinstance(data, memoryview) else data.nbytes

    def entry(self, path: str) -> FileEntry:
        return FileEntry(
            path=path, size_bytes=self.size_bytes, hash=f"blake3:{self._hash.hexdigest()}"
        )


def hash_bytes(data: bytes) -> str:
    """`blake3:<hex>` of `data`."""
    return f"blake3:{blake3(data).hexdigest()}"


def hash_chunks(chunks: Iterable[bytes | memoryview]) -> ContentHash:
    """Hash of a whole stream."""
    content = ContentHash()
    for chunk in chunks:
        content.update(chunk)
    return content


def sha256(data: bytes | Iterable[memoryview]) -> str:
    """SHA-256 (hex), for what people compare with other tools; of bytes or of a stream."""
    total = hashlib.sha256()
    for chunk in [data] if isinstance(data, bytes) else data:
        total.update(chunk)
    return total.hexdigest()
