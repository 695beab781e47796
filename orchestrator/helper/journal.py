"""What a node writes down: events, logs of its ranks, and the run's summary."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.contract.event import Event
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.summary import RunSummary
from orchestrator.errors import StorageError
from orchestrator.run_directory.records import encode_pretty
from orchestrator.run_directory.segments import SegmentWriter
from orchestrator.storage.protocol import Storage

FLUSH_S = 2.0
BEAT_S = 30.0
"""summary.json is written so often even if nothing has changed: its age tells readers whether
the storage takes writes.
"""


class Journal:
    """Buffers and flushes; a storage that fails costs lines, never the run."""

    def __init__(
        self, storage: Storage, clock: Clock, attempt: int, slot: int, gpus_per_node: int
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._attempt = attempt
        self._slot = slot
        self._writer = f"node-{slot}"
        self._first_rank = slot * gpus_per_node
        self._events = SegmentWriter(storage, layout.attempt_events(attempt, self._writer))
        self._logs: dict[int, SegmentWriter] = {}
        self._seq = 0
        self._flushed = clock.monotonic()
        self.failures = 0
        """Flushes that the storage refused."""

    def event(self, kind: str, data: Mapping[str, Any], rank: int | None = None) -> None:
        """Take one event; `rank` is local to the node."""
        self._seq += 1
        line = Event(
            time=iso(self._clock.now()),
            kind=kind,
            writer=self._writer,
            attempt=self._attempt,
            rank=None if rank is None else self._first_rank + rank,
            data=dict(data),
            seq=self._seq,
        )
        try:
            self._events.add(to_json(line))
        except (TypeError, ValueError):
            told = replace(line, data={"unprintable": ascii(line.data)[:1000]})
            self._events.add(to_json(told))

    def log(self, local_rank: int, line: str) -> None:
        """Take one line of a rank's output."""
        writer = self._logs.get(local_rank)
        if writer is None:
            name = f"rank-{self._first_rank + local_rank}"
            writer = SegmentWriter(self._storage, layout.logs(self._attempt, name), suffix=".log")
            self._logs[local_rank] = writer
        writer.add_text(f"{iso(self._clock.now())} {line}".encode(errors="replace"))

    def flush(self, *, force: bool = False) -> None:
        """Make what was taken durable, at most every FLUSH_S unless forced."""
        now = self._clock.monotonic()
        if not force and now - self._flushed < FLUSH_S:
            return
        self._flushed = now
        for writer in (self._events, *self._logs.values()):
            try:
                writer.flush()
            except StorageError:
                # A store that hangs would be waited for once for each of the others too.
                self.failures += 1
                return


class SummaryWriter:
    """Keeps summary.json: at once when phase or checkpoint change, else every `report_s`."""

    def __init__(self, storage: Storage, clock: Clock, first: RunSummary, report_s: float) -> None:
        self._report_s = report_s
        self._storage = storage
        self._clock = clock
        self.now = first
        self._written: RunSummary | None = None
        self._written_at = -report_s
        self._durations: deque[float] = deque(maxlen=50)

    def change(self, **fields: Any) -> None:
        """Replace fields of the summary."""
        self.now = replace(self.now, **fields)

    def progress(self, message: Mapping[str, Any]) -> None:
        """Take a rank's progress message."""
        seconds = message.get("step_seconds")
        if isinstance(seconds, int | float) and seconds > 0:
            self._durations.append(float(seconds))
        step = int(message["step"])
        total = int(message["total_steps"])
        median = statistics.median(self._durations) if self._durations else None
        self.change(
            step=step,
            total_steps=total,
            loss=_finite(message.get("loss")),
            learning_rate=_finite(message.get("learning_rate")),
            step_seconds=median,
            eta_s=None if median is None else round(median * (total - step), 1),
        )

    def write(self, *, force: bool = False) -> None:
        """Write if something a person waits for has changed, or it is time."""
        now = self._clock.monotonic()
        old = self._written
        urgent = (
            force
            or old is None
            or (
                (old.phase, old.checkpoint_step, old.checkpoint_verified, old.save_fault)
                != (
                    self.now.phase,
                    self.now.checkpoint_step,
                    self.now.checkpoint_verified,
                    self.now.save_fault,
                )
            )
        )
        since = now - self._written_at
        if not urgent and since < (BEAT_S if old == self.now else self._report_s):
            return
        stamped = replace(self.now, time=iso(self._clock.now()))
        try:
            self._storage.put(layout.SUMMARY, encode_pretty(stamped))
        except StorageError:
            return
        self._written, self._written_at = self.now, now


def _finite(value: Any) -> float | None:
    """A number that JSON can hold, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
