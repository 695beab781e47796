"""What the doctor says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["danger", "warning", "note", "good"]
"""danger: a run will lose work or never end; warning: it may; note: worth to know."""
ORDER: tuple[Level, ...] = ("danger", "warning", "note", "good")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    """What it is about: a setting's name, a folder, a program."""
    what: str
    why: str = ""
    """Why it matters to a run."""
    change: str = ""
    """The exact line to change, or the command to run."""

    def text(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.level:<8}{self.subject}: {self.what}"]
        if self.why:
            lines.append(f"        why: {self.why}")
        if self.change:
            lines.append(f"        change: {self.change}")
        return "\n".join(lines)


def sorted_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; equal ones in the order in which they were found."""
    return tuple(sorted(findings, key=lambda f: ORDER.index(f.level)))
