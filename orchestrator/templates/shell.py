"""Where in a batch file a value stands. Pure.

A value is quoted as one word of the shell, which is right only where the shell reads a word:
inside quotes, a here-document or arithmetic it would be read otherwise. So each value is first
a mark in the text; the marks are found again with a reader of the shell's syntax, coarse but
on the safe side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

MARK = re.compile("\0([0-9]+)\0")


class Place(StrEnum):
    """Where a mark stands."""

    WORD = "a word of the shell"
    SINGLE = "single quotes"
    DOUBLE = "double quotes"
    BACKTICKS = "backticks"
    ARITHMETIC = "arithmetic"
    HERE = "a here-document"
    COMMENT = "a comment"
    GLUED = "the first letter of a comment"
    DIRECTIVE = "a directive"


_HERE = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|\\?([^\s;&|<>()'\"]+))")
_ANSI = re.compile(r"\$'(?:[^'\\]|\\.)*'", re.DOTALL)
_BREAKS = " \t\n;&|()"


def places(text: str) -> Iterator[tuple[int, int, int, Place]]:
    """Start, end, number and place of every mark in the text, in order."""
    yield from _Reader(text).read()


class _Reader:
    """One pass over a script. The stack holds what is open: `(`, `((`, `"`, or a backtick."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._open: list[str] = []
        self._waiting: list[tuple[str, bool]] = []

    def read(self) -> Iterator[tuple[int, int, int, Place]]:
        while self._at < len(self._text):
            mark = MARK.match(self._text, self._at)
            if mark:
                yield *mark.span(), int(mark[1]), self._place()
                self._at = mark.end()
            elif self._top() == '"':
                self._quoted()
            else:
                yield from self._plain()

    def _top(self) -> str:
        return self._open[-1] if self._open else ""

    def _place(self) -> Place:
        if "`" in self._open:
            return Place.BACKTICKS
        kind = {'"': Place.DOUBLE, "((": Place.ARITHMETIC}
        return kind.get(self._top(), Place.WORD)

    def _quoted(self) -> None:
        """One step inside double quotes."""
        here = self._text[self._at]
        if here == "\\":
            self._at += 2
            return
        if self._text.startswith("$((", self._at):
            self._push("((", 3)
        elif self._text.startswith("$(", self._at):
            self._push("(", 2)
        else:
            if here == '"':
                self._open.pop()
            elif here == "`":
                self._toggle_backtick()
            self._at += 1

    def _plain(self) -> Iterator[tuple[int, int, int, Place]]:
        """One step where words are read."""
        text, at = self._text, self._at
        here = text[at]
        if here == "\\":
            self._at += 2
        elif here == "'":
            yield from self._until("'", Place.SINGLE)
        elif here == "$" and (ansi := _ANSI.match(text, at)):
            yield from self._marks(at, ansi.end(), Place.SINGLE)
            self._at = ansi.end()
        elif here == "#" and (at == 0 or text[at - 1] in _BREAKS):
            yield from self._comment()
        elif here == "\n":
            self._at += 1
            yield from self._documents()
        else:
            self._sign(here)

    def _sign(self, here: str) -> None:
        text, at = self._text, self._at
        if here == '"':
            self._push('"', 1)
        elif here == "`":
            self._toggle_backtick()
            self._at += 1
        elif text.startswith("((", at):
            self._push("((", 2)
        elif here == "(":
            self._push("(", 1)
        elif here == ")":
            self._close()
        elif text.startswith("<<<", at):
            self._at += 3
        elif self._top() != "((" and (found := _HERE.match(text, at)):
            word = next((g for g in found.groups()[1:] if g is not None), "")
            self._waiting.append((word, found[1] == "-"))
            self._at = found.end()
        else:
            self._at += 1

    def _push(self, sign: str, length: int) -> None:
        self._open.append(sign)
        self._at += length

    def _close(self) -> None:
        if self._top() == "((" and self._text.startswith("))", self._at):
            self._open.pop()
            self._at += 2
            return
        if self._top() == "((":
            self._open[-1] = "("
        elif self._top() == "(":
            self._open.pop()
        self._at += 1

    def _toggle_backtick(self) -> None:
        if "`" in self._open:
            while self._open.pop() != "`":
                continue
        else:
            self._open.append("`")

    def _until(self, sign: str, place: Place) -> Iterator[tuple[int, int, int, Place]]:
        end = self._text.find(sign, self._at + 1)
        end = len(self._text) if end < 0 else end
        yield from self._marks(self._at, end, place)
        self._at = end + 1

    def _comment(self) -> Iterator[tuple[int, int, int, Place]]:
        text, at = self._text, self._at
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        whole_line = at == 0 or text[at - 1] == "\n"
        place = Place.DIRECTIVE if whole_line and text.startswith("#SBATCH", at) else Place.COMMENT
        for start, stop, number, found in self._marks(at, end, place):
            yield start, stop, number, Place.GLUED if start == at + 1 else found
        self._at = end

    def _documents(self) -> Iterator[tuple[int, int, int, Place]]:
        """The here-documents that begin after this line."""
        for word, dashed in self._waiting:
            while self._at < len(self._text):
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line = self._text[self._at : end]
                yield from self._marks(self._at, end, Place.HERE)
                self._at = end + 1
                if (line.lstrip("\t") if dashed else line) == word:
                    break
        self._waiting.clear()

    def _marks(self, start: int, end: int, place: Place) -> Iterator[tuple[int, int, int, Place]]:
        for mark in MARK.finditer(self._text, start, end):
            yield *mark.span(), int(mark[1]), place
