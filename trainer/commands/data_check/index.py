"""An index file read with patience: what is good is kept, each fault is named."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.contract.regular import read_regular
from trainer.commands.data_check.kinds import Finding

Pairs: TypeAlias = list[tuple[str, Any]]

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SPACE = " \t\r\n"
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Record:
    """One object of the index; `number` counts all records, good and bad, from 0."""

    number: int
    line: int
    value: dict[str, Any]


@dataclass(slots=True)
class Index:
    """What was read of one index file."""

    file: str
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, kind: str, reason: str, *, record: int | None = None, line: int | None = None
    ) -> None:
        self.findings.append(Finding(kind, self.file, reason, record, line))


def read(file: Path) -> Index:
    """Read a JSON array or JSONL file; faults become findings, never exceptions."""
    index = Index(str(file))
    try:
        data = read_regular(file)
    except OSError as fault:
        index.add("unreadable-index", fault.strerror or str(fault))
        return index
    if data.startswith(_UTF16):
        index.add("encoding", "UTF-16: save the file as UTF-8")
        return index
    if data.startswith(codecs.BOM_UTF8):
        index.add("bom", "begins with a byte order mark")
        data = data[len(codecs.BOM_UTF8) :]
    if data.lstrip()[:1] == b"[":
        _read_array(index, data)
    else:
        _read_lines(index, data)
    if not index.records and not index.findings:
        index.add("empty-index", "no samples")
    return index


def _read_array(index: Index, data: bytes) -> None:
    """Record by record, so that those before a fault are kept."""
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        index.add("encoding", f"not UTF-8 ({fault.reason})", line=line)
        text = data.decode(errors="replace")
    cursor = _Cursor(text)
    try:
        for number, (line, value, doubles) in enumerate(cursor.elements()):
            _keep(index, number, line, value, doubles)
    except ValueError as fault:
        index.add("json", f"the array ends in a fault: {fault}", line=cursor.line())
        return
    if cursor.rest():
        index.add("documents", "something follows the array", line=cursor.line())


def _read_lines(index: Index, data: bytes) -> None:
    if _is_spread_out(data):
        index.add("documents", "one JSON object over several lines: JSONL needs one a line")
        return
    number = 0
    for line, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        _read_line(index, number, line, raw)
        number += 1


def _read_line(index: Index, number: int, line: int, raw: bytes) -> None:
    try:
        text = raw.decode()
    except UnicodeDecodeError as fault:
        index.add("encoding", f"not UTF-8 ({fault.reason})", record=number, line=line)
        return
    if text.startswith(_MARK):
        index.add("late-bom", "begins with a byte order mark", record=number, line=line)
        return
    cursor = _Cursor(text)
    try:
        value, doubles = cursor.value()
    except (ValueError, RecursionError) as fault:
        index.add("json", f"not JSON: {fault}", record=number, line=line)
        return
    if cursor.rest():
        index.add("documents", "several JSON values on one line", record=number, line=line)
        return
    _keep(index, number, line, value, doubles)


def _keep(index: Index, number: int, line: int, value: Any, doubles: list[str]) -> None:
    if not isinstance(value, dict):
        kind = type(value).__name__
        index.add("no-object", f"{kind} instead of an object", record=number, line=line)
        return
    for key in doubles:
        index.add("duplicate-key", f"`{key}` stands twice", record=number, line=line)
    if not doubles:
        index.records.append(Record(number, line, value))


def _is_spread_out(data: bytes) -> bool:
    """True for an object that is printed over several lines."""
    first, _, rest = data.lstrip().partition(b"\n")
    if not rest.strip() or first.strip()[:1] != b"{" or first.rstrip().endswith(b"}"):
        return False
    try:
        cursor = _Cursor(data.decode())
        cursor.value()
    except (ValueError, RecursionError):
        return False
    return True


class _Cursor:
    """A place in a JSON text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = 0
        self._line = 1
        self._doubles: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def line(self) -> int:
        """Line of the place, from 1."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def rest(self) -> str:
        """What follows, without the space before it."""
        self._skip()
        return self._text[self._at : self._at + 40]

    def value(self) -> tuple[Any, list[str]]:
        """The next value and its repeated keys. Raises ValueError and RecursionError."""
        self._skip()
        self._doubles = []
        value, self._at = self._decoder.raw_decode(self._text, self._at)
        return value, self._doubles

    def elements(self) -> Iterator[tuple[int, Any, list[str]]]:
        """(line, value, repeated keys) of each element of the array. Raises ValueError."""
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        while True:
            self._skip()
            line = self.line()
            try:
                value, doubles = self.value()
            except RecursionError:
                raise ValueError("nested too deeply") from None
            yield line, value, doubles
            if self._next() == "]":
                self._at += 1
                return
            self._expect(",")

    def _object(self, pairs: Pairs) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self._doubles += [key for key in found if keys.count(key) > 1]
        return found

    def _skip(self) -> None:
        text, at = self._text, self._at
        while at < len(text) and text[at] in _SPACE:
            at += 1
        self._at = at

    def _next(self) -> str:
        self._skip()
        return self._text[self._at : self._at + 1]

    def _expect(self, sign: str) -> None:
        if self._next() != sign:
            found = self._next() or "the end of the file"
            raise ValueError(f"{sign!r} expected instead of {found!r}")
        self._at += 1
