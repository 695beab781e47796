"""Faults of a configuration file: each with its place, collected and raised together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import JobFileError

Path = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line (from 1) of a file; `line` is None for a `--set` on the command line."""

    file: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and what to do about it.

    `place` overrides the place found by `path`; None until the fault is located.
    """

    path: Path
    message: str
    hint: str | None = None
    place: Place | None = None

    def error(self) -> JobFileError:
        """The fault as an error of its own."""
        place = self.place
        return JobFileError(
            self.message,
            file=place.file if place else None,
            line=place.line if place else None,
            path=dotted(self.path) or None,
            hint=self.hint,
        )


class JobFaults(JobFileError):
    """Everything that is wrong with a file; the text lists each fault with its place."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0].error()
        super().__init__(_text(faults), hint=first.hint if len(faults) == 1 else None)
        self.faults = tuple(faults)
        self.file, self.line, self.path = first.file, first.line, first.path


def dotted(path: Path) -> str:
    """`training.optim`, `code[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value for a message: short, with its kind where that is not plain."""
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    return "true" if value is True else "false" if value is False else repr(value)[:40]


def locate(faults: Iterable[Fault], places: Mapping[Path, Place]) -> tuple[Fault, ...]:
    """Give each fault its place: that of its path, else of the nearest enclosing value."""
    return tuple(
        fault if fault.place else replace(fault, place=_nearest(fault.path, places))
        for fault in faults
    )


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise JobFaults if there is any fault; ordered by place, each said once."""
    unique = sorted(dict.fromkeys(faults), key=_order)
    if unique:
        raise JobFaults(unique)


def _nearest(path: Path, places: Mapping[Path, Place]) -> Place | None:
    for end in range(len(path), -1, -1):
        if path[:end] in places:
            return places[path[:end]]
    return None


def _order(fault: Fault) -> tuple[str, int]:
    place = fault.place
    return (place.file if place else "", (place.line or 0) if place else 0)


def _text(faults: Sequence[Fault]) -> str:
    if len(faults) == 1:
        return faults[0].error().message
    lines = [f"{len(faults)} faults"]
    for fault in faults:
        error = fault.error()
        lines.append(f"  {error.message}")
        if error.hint:
            lines.append(f"    hint: {error.hint}")
    return "\n".join(lines)
