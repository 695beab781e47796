"""How a value is written. Every function refuses what it cannot write safely. Pure."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.config.values.sbatch import TOKEN

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Unfit(ValueError):
    """A value that cannot stand there. `cure` says what to do."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


def plain(value: Any) -> str:
    """A scalar as text; Unfit for what has no text of its own."""
    if value is None:
        raise Unfit("has no value", "print it only where it has one: {% if x is not none %}")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, Mapping | list | tuple):
        raise Unfit("is a list or a mapping", "loop over it: {% for item in x %}")
    raise Unfit(f"is a {type(value).__name__}", "print one of its values")


def word(value: Any) -> str:
    """One word of the shell, whatever it holds."""
    text = plain(value)
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise Unfit("holds a character that no shell word can hold", "remove it")
    return shlex.quote(text)


def directive(value: Any) -> str:
    """One token of an `#SBATCH` line."""
    text = plain(value)
    if not TOKEN.fullmatch(text):
        raise Unfit(
            f"{text[:80]!r} cannot stand in a directive",
            "use letters, digits and _.,:;+@%/[]()*&|!=- only, without blanks",
        )
    return text


def comment(value: Any) -> str:
    """The rest of a comment line: what could end the line is shown as a blank."""
    return _UNPRINTABLE.sub(" ", plain(value))


def yaml_value(value: Any) -> str:
    """JSON on one line, which every YAML reader takes for the same value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pairs = (f"{_string(str(k))}: {yaml_value(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(yaml_value(v) for v in value) + "]"
    raise Unfit(f"is a {type(value).__name__}", "print one of its values")


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise Unfit("is not a finite number", "give a number")
    text = repr(value)
    # YAML 1.1 takes 1e-05 for text: it wants the point.
    return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text


def _string(value: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Unfit("holds half a character", "remove it")
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
