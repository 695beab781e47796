"""Spelling help: the known name nearest to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most resembles, or None if none is near."""
    options = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), options, n=1, cutoff=0.7)
    if not close:
        close = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.7)
    return options[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """`did you mean X?`, or None if nothing is near."""
    best = nearest(name, known)
    return None if best is None else f"did you mean {best}?"


def listed(options: Iterable[object]) -> str:
    """`a, b or c`."""
    words = [str(option) for option in options]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"
