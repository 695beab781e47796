"""Durations as people and schedulers write them."""

from __future__ import annotations

import re

EXAMPLES = '"4h", "90m", "1d12h", "1-12:00:00", "04:30:00" or a number of seconds'

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WORDS = re.compile(r"(?:\d{1,6}\s*[dhms]\s*)+")
_CLOCK = re.compile(r"(?:(?P<d>\d{1,4})-)?(?P<h>\d{1,4}):(?P<m>[0-5]?\d):(?P<s>[0-5]?\d)")
MAX_S = 10 * 365 * 86400


def parse_duration(value: object) -> int:
    """Seconds of `4h`, `90m`, `1d12h`, `1-12:00:00` (days-hours:minutes:seconds),
    `04:30:00` or a whole number of seconds.

    Raises ValueError for anything else (`30:00` could mean hours or minutes), for zero and
    for more than ten years.
    """
    seconds = _seconds(value)
    if not 0 < seconds <= MAX_S:
        raise ValueError("must be positive and at most ten years")
    return seconds


def _seconds(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    if _WORDS.fullmatch(text):
        return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)\s*([dhms])", text))
    if clock := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(clock[part] or 0) for part in "dhms")
        return days * 86400 + hours * 3600 + minutes * 60 + seconds
    raise ValueError(f"must be a duration: {EXAMPLES}")
