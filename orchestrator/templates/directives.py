"""The `#SBATCH` lines of a batch file, read as sbatch reads them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.config.values.sbatch import OURS, SBATCH

_SHORT = {
    "A": "account", "a": "array", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "N": "nodes", "n": "ntasks", "o": "output",
    "p": "partition", "q": "qos", "t": "time", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_FLAGS = frozenset({"hold", "requeue", "no-requeue", "no-kill", "wait", "test-only", "parsable"})
_COMMENT = re.compile(r"(?<=\s)#")
_WORD = re.compile(r"(?:[^\s\"'\\#]|\\.|\"[^\"]*\"|'[^']*'|(?<=\S)#)+")


@dataclass(frozen=True, slots=True)
class Directive:
    """One option: line of the text (from 1), full name, value ('' for a flag)."""

    line: int
    name: str
    value: str


def directives(text: str) -> tuple[Directive, ...]:
    """Every option of the batch file, in order; of equal ones sbatch takes the last.

    sbatch stops looking at the first line that is neither blank nor a comment.
    """
    found: list[Directive] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("#SBATCH") and line[7:8].isspace():
            found += _options(number, _WORD.findall(_COMMENT.split(line[7:])[0]))
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return tuple(found)


def _options(line: int, words: Sequence[str]) -> Iterator[Directive]:
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, mark, value = word.partition("=")
        if name.startswith("--"):
            name = _full(name[2:])
        elif name.startswith("-") and len(name) > 1:
            # -N4, -N 4
            value, mark = word[2:], "=" if len(word) > 2 else ""
            name = _SHORT.get(word[1], word[1])
        else:
            continue
        if not mark and name not in _FLAGS and waiting and not waiting[0].startswith("-"):
            value = waiting.pop(0)
        yield Directive(line, name, value.strip("\"'"))


def _full(name: str) -> str:
    """The option that an abbreviation stands for."""
    known = OURS | SBATCH
    if name in known:
        return name
    meant = [option for option in sorted(known) if option.startswith(name)]
    return meant[0] if meant else name
