"""Staged files are what was written, at their places, whatever was there before."""

from __future__ import annotations

import copy
import os
from typing import Any

from trainer.checkpoint.saver_process import _copier
from trainer.checkpoint.shards import GivenUp, StagedWriter, mapped, shared_memory


def content(fd: int, writer: StagedWriter) -> dict[str, bytes]:
    memory = mapped(fd)
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
    fd = shared_memory()
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
    writer = StagedWriter(shared_memory())

    def fail(_sink: object) -> None:
        raise ValueError("no such tensor")

    writer.write("a", fail)
    writer.put("b", b"x")
    assert str(writer.error) == "no such tensor"
    assert writer.files == []


def test_what_is_dumped_is_copied_by_freeze_and_written_by_complete() -> None:
    fd = shared_memory()
    writer, value = StagedWriter(fd), [1, 2]
    writer.dump("values", value, lambda v, sink: sink.write(bytes(v)))
    writer.put("now", b"x")
    writer.freeze(copy.deepcopy)
    value.append(3)
    assert content(fd, writer) == {"now": b"x"}
    writer.complete()
    assert content(fd, writer) == {"now": b"x", "values": b"\1\2"}


def test_a_save_that_is_given_up_ends_at_its_next_write() -> None:
    writer = StagedWriter(shared_memory())

    def dump(_value: object, sink: Any) -> None:
        sink.write(b"1")
        writer.given_up.set()
        sink.write(b"2")

    writer.dump("a", None, dump)
    writer.dump("b", None, dump)
    writer.complete()
    assert isinstance(writer.error, GivenUp)
    assert writer.files == []
