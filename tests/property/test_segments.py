"""Streams of lines: whatever is added, flushed, lost and restarted, readers see all in order."""

from __future__ import annotations

import contextlib
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.run_directory.segments import SegmentWriter, read_lines, read_segments
from orchestrator.storage.memory import MemoryStorage

_spaces = itertools.count()
ACTS = st.lists(st.sampled_from(["add", "flush", "fail", "restart"]), max_size=40)


class Failing(MemoryStorage):
    """The next put fails."""

    fail = False

    def put(self, path: str, data: bytes) -> None:
        if self.fail:
            self.fail = False
            raise StorageError("no")
        super().put(path, data)


@settings(max_examples=200)
@given(ACTS, st.integers(1, 5))
def test_lines_come_back_in_order_and_once(acts: list[str], limit: int) -> None:
    uri = f"memory://segments-{next(_spaces)}"
    storage = Failing(uri)
    number, durable, pending = 0, 0, 0
    writer = SegmentWriter(storage, "events/w/", segment_lines=limit)
    expected: list[int] = []
    for act in acts:
        if act == "add":
            number += 1
            pending += 1
            writer.add({"n": number})
        elif act == "flush":
            writer.flush()
            expected += range(number - pending + 1, number + 1)
            durable, pending = number, 0
        elif act == "fail" and pending:
            storage.fail = True
            with contextlib.suppress(StorageError):
                writer.flush()
            storage.fail = False
        elif act == "restart" and not pending:
            writer = SegmentWriter(storage, "events/w/", segment_lines=limit)
    found = [line["n"] for _, line in read_segments(storage, "events/w/")]
    assert found[: len(expected)] == expected
    assert len(set(found)) == len(found)
    assert durable == (expected[-1] if expected else 0)
    for _, lines in itertools.groupby(read_lines(storage, "events/w/"), key=lambda x: x[0]):
        assert len(list(lines)) <= limit
    MemoryStorage._spaces.pop(uri)


def test_a_restarted_writer_never_touches_older_segments(memory: MemoryStorage) -> None:
    first = SegmentWriter(memory, "a/")
    first.add({"n": 1})
    first.flush()
    second = SegmentWriter(memory, "a/")
    second.add({"n": 2})
    second.flush()
    assert [(s, line["n"]) for s, line in read_segments(memory, "a/")] == [(1, 1), (2, 2)]
    assert [line["n"] for _, line in read_segments(memory, "a/", start=2)] == [2]


def test_writers_do_not_mix(memory: MemoryStorage) -> None:
    for name in ("x", "y"):
        writer = SegmentWriter(memory, f"events/{name}/")
        writer.add({"w": name})
        writer.flush()
        writer.flush()
    assert [line["w"] for _, line in read_segments(memory, "events/x/")] == ["x"]


def test_what_is_no_line_of_json_is_passed_over(memory: MemoryStorage) -> None:
    memory.put("a/00000001.jsonl", b'{"n": 1}\n{"half\n{"n": 2}')
    memory.put("a/notes.txt", b'{"n": 3}')
    memory.put("a/00000002.jsonl", b"\xff\n")
    assert [line for _, line in read_segments(memory, "a/")] == [{"n": 1}, {"n": 2}]


def test_text(memory: MemoryStorage) -> None:
    writer = SegmentWriter(memory, "logs/rank-0/", suffix=".log")
    writer.add_text("naïve".encode())
    writer.flush()
    assert list(read_lines(memory, "logs/rank-0/")) == [(1, "naïve".encode())]
    assert memory.list("logs/rank-0/")[0].path.endswith("00000001.log")


def test_an_object_that_goes_while_reading(memory: MemoryStorage) -> None:
    class Vanishing(MemoryStorage):
        def get(self, path: str) -> bytes:
            self.delete(path)
            return super().get(path)

    memory.put("a/00000001.jsonl", b"{}")
    assert list(read_lines(Vanishing(memory.uri), "a/")) == []
