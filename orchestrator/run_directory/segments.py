"""Streams of lines (events, metrics, logs) in numbered segments of one writer each.

The newest segment is rewritten by its only writer until it is full; readers merge the
segments of all writers. Losing a stream never stops a run: `flush` is the caller's to guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.contract import layout
from orchestrator.contract.jsonio import Json, MalformedJson, canonical, loads
from orchestrator.storage.protocol import NotFound, Storage

SEGMENT_LINES = 1000


class SegmentWriter:
    """Writes one stream below `folder`; the first segment number not yet taken is its own."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        *,
        suffix: str = ".jsonl",
        segment_lines: int = SEGMENT_LINES,
    ) -> None:
        self._storage = storage
        self._suffix = suffix
        self._folder = folder
        self._limit = segment_lines
        self._lines: list[bytes] = []
        self._seq: int | None = None
        self._dirty = False

    def add(self, line: Json) -> None:
        """Take one line of JSON; it is durable after the next `flush`."""
        self.add_text(canonical(line))

    def add_text(self, line: bytes) -> None:
        """Take one line as it is, without its end."""
        self._lines.append(line)
        self._dirty = True

    def flush(self) -> None:
        """Make every line taken so far durable. Raises StorageError."""
        if not self._dirty:
            return
        if self._seq is None:
            taken = (layout.number_of(e.path) for e in self._storage.list(self._folder))
            self._seq = max((n for n in taken if n is not None), default=0) + 1
        while self._lines:
            chunk, rest = self._lines[: self._limit], self._lines[self._limit :]
            self._storage.put(
                layout.segment(self._folder, self._seq, self._suffix), b"\n".join(chunk) + b"\n"
            )
            if not rest and len(chunk) < self._limit:
                break
            self._seq += 1
            self._lines = rest
        self._dirty = False


def read_lines(storage: Storage, folder: str, *, start: int = 1) -> Iterator[tuple[int, bytes]]:
    """(segment number, line) of one stream in order, from segment `start` on."""
    for entry in storage.list(folder):
        number = layout.number_of(entry.path)
        if number is None or number < start:
            continue
        try:
            data = storage.get(entry.path)
        except NotFound:
            continue
        for line in data.splitlines():
            yield number, line


def read_segments(storage: Storage, folder: str, *, start: int = 1) -> Iterator[tuple[int, Json]]:
    """`read_lines` parsed; a line that is no JSON is passed over."""
    for number, line in read_lines(storage, folder, start=start):
        try:
            yield number, loads(line)
        except MalformedJson:
            continue


def read_events(storage: Storage, attempt: int, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Events of one attempt's agents, their data a mapping; what cannot be read is passed over."""
    parent = f"{layout.attempt_dir(attempt)}events/"
    writers = {e.path.rpartition("/")[0] for e in storage.list(parent, deep=True)}
    for writer in sorted(writers):
        for _, line in read_segments(storage, f"{writer}/"):
            if isinstance(line, dict) and line.get("kind") in kinds:
                yield {**line, "data": line.get("data") or {}}
