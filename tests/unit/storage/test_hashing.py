"""Hashing beside another use of the same bytes."""

from __future__ import annotations

import threading

import pytest

from orchestrator.errors import InternalError
from orchestrator.storage import hashing
from orchestrator.storage.hashing import BESIDE_BYTES, ContentHash, hash_bytes


@pytest.mark.parametrize("size", [0, 1, BESIDE_BYTES - 1, BESIDE_BYTES, 3 * BESIDE_BYTES + 7])
def test_the_same_hash_as_in_one_go(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    content = ContentHash()
    for part in (data[:size], b"and", data[:size]):
        with content.beside(memoryview(part)):
            pass
    entry = content.entry("file")
    assert entry.size_bytes == 2 * size + 3
    assert entry.hash == hash_bytes(data[:size] + b"and" + data[:size])


def test_large_data_is_hashed_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Event()

    class Waiting:
        """Hashes only once the block is entered."""

        def update(self, data: memoryview) -> None:
            if not inside.wait(10.0):
                raise AssertionError("hashed before the block")

    monkeypatch.setattr(hashing, "blake3", Waiting)
    content = ContentHash()
    with content.beside(memoryview(bytes(BESIDE_BYTES))):
        inside.set()
    assert content.size_bytes == BESIDE_BYTES
    assert not any(t.name == "qvl-hash" for t in threading.enumerate())


def test_a_failure_of_the_block_ends_after_the_hashing() -> None:
    content = ContentHash()
    buffer = bytearray(BESIDE_BYTES)
    with pytest.raises(OSError, match="disk"), content.beside(memoryview(buffer)):
        raise OSError("disk")
    buffer.clear()  # nobody holds it any more
    assert content.size_bytes == BESIDE_BYTES


def test_a_failure_to_hash_is_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def update(self, data: memoryview) -> None:
            raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(hashing, "blake3", Failing)
    content = ContentHash()
    view = memoryview(bytes(BESIDE_BYTES))
    with pytest.raises(InternalError, match="hashing"), content.beside(view):
        pass
