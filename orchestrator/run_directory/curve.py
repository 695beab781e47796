"""The training curve of a run, from the metrics of its attempts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import MalformedJson, from_json
from orchestrator.domain.curve import merge
from orchestrator.errors import RecordDamaged
from orchestrator.run_directory.attempts import attempt_numbers, read_start
from orchestrator.run_directory.segments import read_segments
from orchestrator.storage.protocol import Storage


def read_curve(storage: Storage) -> list[StepMetrics]:
    """The curve of a run, read from what rank 0 of each attempt wrote."""
    numbers, starts = attempt_numbers(storage), {}
    for number in numbers:
        with suppress(RecordDamaged):  # then its first line says where it started
            if (point := read_start(storage, number)) is not None:
                starts[number] = point.step
    return merge({n: _lines(storage, n) for n in numbers}, starts)


def _lines(storage: Storage, attempt: int) -> Iterator[StepMetrics]:
    for _, line in read_segments(storage, layout.metrics(attempt, 0)):
        with suppress(MalformedJson):
            yield from_json(StepMetrics, line)
