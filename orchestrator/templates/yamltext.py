"""Where in a manifest a value stands. Pure.

A value is written as JSON, which is right only where a whole YAML value stands: after `key:`,
`- ` or inside `[...]` and `{...}`, with nothing glued to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

from orchestrator.templates.shell import MARK


class Place(StrEnum):
    """Where a mark stands."""

    VALUE = "a value"
    COMMENT = "a comment"
    PART = "a part of a text"


_BEFORE = re.compile(r"(^|[:\-?,] |[\[{] *|\? )[ ]*$")
_AFTER = re.compile(r"[ ]*($|[,\]}:]|#)")
_COMMENT = re.compile(r"(^|[ \t])#")


def places(text: str) -> Iterator[tuple[int, int, int, Place]]:
    """Start, end, number and place of every mark in the text, in order."""
    for mark in MARK.finditer(text):
        line_start = text.rfind("\n", 0, mark.start()) + 1
        line_end = text.find("\n", mark.end())
        before = text[line_start : mark.start()]
        after = text[mark.end() : len(text) if line_end < 0 else line_end]
        if _COMMENT.search(MARK.sub("x", before)):
            place = Place.COMMENT
        elif _BEFORE.search(before) and _AFTER.match(after):
            place = Place.VALUE
        else:
            place = Place.PART
        yield *mark.span(), int(mark[1]), place
