"""What two failures have in common: the error without what differs from one time to the next."""

from __future__ import annotations

import re

from orchestrator.contract.codes import ExitCode
from orchestrator.domain.facts import AttemptFacts

_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?|(?:/[\w.+-]+){2,}")
"""Addresses, numbers (ranks, sizes, times, ports) and paths."""


def signature(attempt: AttemptFacts) -> str:
    """A text that is equal for two attempts that failed of the same cause; empty without a verdict.

    Memory counts as one cause whatever was asked for, of the device (77) as of the host.
    """
    verdict = attempt.verdict
    if verdict is None:
        return ""
    if attempt.ending == "oom":
        return "memory of the host"
    if verdict.code == ExitCode.OUT_OF_MEMORY:
        return "memory of the device"
    return f"{verdict.reason}: {_VARYING.sub('#', _last_line(verdict.message))}"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""
