"""The answers of `scontrol show config` and `scontrol show partition`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"([A-Za-z][\w.\[\]]*)\s*=\s?(.*?)\s*")
_PAIR = re.compile(r"([A-Za-z]\w*(?::\w+)?)=(\S*)")
_SECONDS = re.compile(r"(\d+)(?:\s*sec)?")
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class SlurmConf:
    """slurm.conf as the controller has it; names are looked up without regard to case."""

    values: Mapping[str, str]

    def get(self, name: str) -> str:
        """The value; empty where it is not set."""
        value = self.values.get(name.lower(), "")
        return "" if value in ("(null)", "N/A", "none", "NONE") else value

    def seconds(self, name: str) -> int | None:
        """A time in seconds; None where it is not set or not a time."""
        return seconds(self.get(name))

    def parameters(self, name: str) -> Mapping[str, str]:
        """`a,b=1` as a mapping, names in lower case."""
        pairs = (p.partition("=") for p in self.get(name).split(",") if p)
        return {key.strip().lower(): value for key, _, value in pairs}

    @property
    def version(self) -> tuple[int, int] | None:
        """(22, 5) of 22.05.8."""
        found = re.match(r"(\d+)\.(\d+)", self.get("SLURM_VERSION"))
        return (int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as the controller has it."""

    name: str
    values: Mapping[str, str]

    def get(self, name: str) -> str:
        value = self.values.get(name.lower(), "")
        return "" if value in ("(null)", "N/A") else value

    @property
    def preempt_modes(self) -> frozenset[str]:
        """Upper case; GANG and others may be combined."""
        return frozenset(self.get("PreemptMode").upper().split(","))

    @property
    def grace_s(self) -> int:
        return seconds(self.get("GraceTime")) or 0

    @property
    def max_time_s(self) -> int | None:
        """None: no limit."""
        return seconds(self.get("MaxTime"))

    @property
    def default_time_s(self) -> int | None:
        """None: that of MaxTime."""
        return seconds(self.get("DefaultTime"))

    @property
    def default(self) -> bool:
        return self.get("Default").upper() == "YES"


def seconds(text: str) -> int | None:
    """`30 sec`, `300`, `01:00:00`, `2-00:00:00`; None for UNLIMITED, NONE and the like."""
    text = text.strip()
    if found := _SECONDS.fullmatch(text):
        return int(found[1])
    if found := _CLOCK.fullmatch(text):
        days, hours, minutes, rest = (int(g or 0) for g in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    return None


def parse_config(text: str) -> SlurmConf:
    """`scontrol show config`."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return SlurmConf({m[1].lower(): m[2] for m in found if m})


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """`scontrol -o show partition`: one partition a line."""
    found = []
    for line in text.splitlines():
        pairs = {m[1].lower(): m[2] for m in _PAIR.finditer(line)}
        if "partitionname" in pairs:
            found.append(Partition(pairs["partitionname"], pairs))
    return tuple(found)
