"""What looks like a secret: such a value must not stand in a job file."""

from __future__ import annotations

import math
import re
from collections import Counter

CURE = "secrets: [{name}] takes it from your environment at submit"

_NAME = re.compile(
    r"(^|_)(API|ACCESS|PRIVATE|SECRET|ENCRYPTION|SIGNING)_?KEY(_|$)"
    r"|(^|_)(SECRETS?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?|AUTH|BEARER)(_|$)"
    r"|(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$"
)
_PLACE = re.compile(r"_(FILE|PATH|DIR|URI)$")
_VALUES = (
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{16,}")),
    ("an AWS access key", re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,})")),
    ("a GitLab token", re.compile(r"\bglpat-[\w-]{16,}")),
    ("a Slack token", re.compile(r"\bxox[abprs]-[\w-]{10,}")),
    ("an API key", re.compile(r"\bsk-[\w-]{20,}")),
    ("a Google API key", re.compile(r"\bAIza[\w-]{35}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("a signed token", re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.")),
    ("a signed URL", re.compile(r"[?&](X-Amz-Signature|Signature|sig|access_token|token)=", re.I)),
    ("a URL with a password", re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.I)),
)
_RANDOM = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
_MAX_CHARS = 4096
"""Characters of a value that are looked at."""
_MIN_BITS = 4.4
"""Bits per character from which a long mixed word counts as random."""


def secret_name(name: str) -> bool:
    """True if a variable of this name usually holds a secret (and not the path to one)."""
    upper = name.upper()
    return _NAME.search(upper) is not None and _PLACE.search(upper) is None


def known_secret(value: str) -> str | None:
    """What the value is, if it has the form of a well-known secret."""
    head = value[:_MAX_CHARS]
    return next((what for what, pattern in _VALUES if pattern.search(head)), None)


def secret_value(value: str) -> str | None:
    """What the value is, if it has the form of a secret or is long and random."""
    if what := known_secret(value):
        return what
    text = value.strip()
    if text.startswith(("/", "./", "../", "~")) or not _RANDOM.fullmatch(text, 0, _MAX_CHARS):
        return None
    kinds = (str.isupper, str.islower, str.isdigit)
    mixed = all(any(kind(char) for char in text) for kind in kinds)
    return "a random key" if mixed and _bits(text) >= _MIN_BITS else None


def _bits(text: str) -> float:
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
