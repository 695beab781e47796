"""Staged files are what was written, at their places, whatever was there before."""

from __future__ import annotations

import os

from trainer import staging
from trainer.saver import _copier
from trainer.staging import StagedWriter


def content(fd: int, writer: StagedWriter) -> dict[str, bytes]:
    memory = staging.mapped(fd)
    found = {}
    for file in writer.files:
        pieces: list[bytes] = []

        class Sink:
            def write(self, data: memoryview, pieces: list[bytes] = pieces) -> int:
                pieces.append(bytes(data))
                return len(data)

        _copier(memory, file.offset, file.size_bytes)(Sink())  # type: ignore[arg-type]
        found[file.path] = b"".join(pieces)
    return found


def test_files_come_back_and_the_memory_is_used_again() -> None:
    fd = staging.memory()
    for size in (60_000, 3):
        writer = StagedWriter(fd)
        big = os.urandom(1000) * (size // 3)
        writer.write("model.bin", lambda sink, big=big: [sink.write(big), sink.write(b"end")])
        writer.put("empty", b"")
        writer.put("state.json", b"{}")
        assert content(fd, writer) == {
            "model.bin": big + b"end",
            "empty": b"",
            "state.json": b"{}",
        }
    os.close(fd)


def test_the_first_error_is_kept() -> None:
    writer = StagedWriter(staging.memory())

    def fail(_sink: object) -> None:
        raise ValueError("no such tensor")

    writer.write("a", fail)
    writer.put("b", b"x")
    assert str(writer.error) == "no such tensor"
    assert writer.files == []
