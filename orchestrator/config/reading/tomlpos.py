"""Where the values of a TOML file stand. Pure.

The parser of the standard library keeps no lines. This reader finds those of tables and keys
in a file that the parser has accepted; what stands inside a value has the line of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]

_PART = r"(?:[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*')"
_NAME = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_NAME})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_NAME})[ \t]*=")
_INLINE = re.compile(rf"[{{,][ \t\n]*({_NAME})[ \t]*=")


def lines(text: str) -> Mapping[Path, int]:
    """The line (from 1) of every table and key."""
    found: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in _outside_strings(text):
        if header := _HEADER.match(line):
            table = _resolved(_parts(header[2]), counts, repeated=header[1] == "[[")
            for end in range(1, len(table) + 1):
                found.setdefault(table[:end], number)
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
            for end in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:end], number)
            rest = line[key.end() :]
            for inner in _INLINE.finditer(rest):
                found.setdefault((*path, *_parts(inner[1])), number)
    return found


def _parts(name: str) -> Path:
    return tuple(part.strip("\"'") for part in re.findall(_PART, name))


def _resolved(name: Path, counts: dict[Path, int], *, repeated: bool) -> Path:
    """The path of a table, with the number of each repeated table in it."""
    path: Path = ()
    for i, part in enumerate(name):
        path = (*path, part)
        if repeated and i == len(name) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """Lines that do not begin inside a multi-line string or array."""
    inside, depth = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if not inside and depth == 0:
            yield number, line
        depth, inside = _after(line, depth, inside)


def _after(line: str, depth: int, inside: str) -> tuple[int, str]:
    """Open brackets of values, and the open multi-line quote, at the end of a line."""
    if not inside and depth == 0 and _HEADER.match(line):
        return 0, ""
    at = 0
    while at < len(line):
        here = line[at]
        if inside:
            if line.startswith(inside, at):
                at, inside = at + len(inside), ""
            else:
                at += 2 if here == "\\" and inside[0] == '"' else 1
            continue
        if here == "#":
            break
        quote = next((q for q in ('"""', "'''", '"', "'") if line.startswith(q, at)), "")
        if quote:
            inside, at = quote, at + len(quote)
            continue
        depth += (here in "[{") - (here in "]}")
        at += 1
    return max(0, depth), inside if len(inside) == 3 else ""
