"""Text of others for a terminal: what could command it, or hide what stands there, is escaped.

Control characters (C0, C1, DEL), marks that turn the direction of writing, what has no width, line
and paragraph separators, halves of surrogate pairs. Letters of all scripts stay as they are, and
so do the joiners that some of them need.
"""

from __future__ import annotations

import re

_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")


def line(text: str) -> str:
    """One line: also its ends and tabs are escaped."""
    return _HARMFUL.sub(_escaped, text)


def text(lines: str) -> str:
    """Several lines, with their ends and tabs."""
    return _HARMFUL.sub(lambda m: m[0] if m[0] in "\n\t" else _escaped(m), lines)


def printed(said: str) -> str:
    """What a program printed, a line of it: with its tabs, without its colours."""
    return text(_COLOURS.sub("", said)).replace("\n", "\\n")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
