"""One line for each optimizer step and rank, durable before the step is committed.

Losing metrics never stops a run: failures are reported once and forgotten.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import to_json
from orchestrator.run_directory.segments import SegmentWriter
from orchestrator.storage.protocol import Storage

FLUSH_EVERY_S = 5.0
FLUSH_PATIENCE_S = 30.0


class MetricsLog:
    """The stream of one rank; lines are taken at once and written in the background."""

    def __init__(
        self, storage: Storage, attempt: int, rank: int, warn: Callable[[str], None]
    ) -> None:
        self._writer = SegmentWriter(storage, layout.metrics(attempt, rank))
        self._warn = warn
        self._waiting: deque[StepMetrics] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._then: deque[Callable[[], None]] = deque()
        self._closed = False
        threading.Thread(target=self._run, name="qvl-metrics", daemon=True).start()

    def add(self, line: StepMetrics) -> None:
        """Take one line; never blocks."""
        self._waiting.append(line)

    def flush(self) -> None:
        """Make all lines durable, or warn."""
        if not self._lock.acquire(timeout=FLUSH_PATIENCE_S):
            self._warn("metrics are late: the storage does not answer")
            return
        try:
            while self._waiting:
                self._writer.add(to_json(self._waiting.popleft()))
            self._writer.flush()
        except Exception as fault:  # noqa: BLE001 - metrics never stop a run
            self._warn(f"metrics cannot be written: {fault}")
        finally:
            self._lock.release()

    def flush_soon(self, then: Callable[[], None]) -> None:
        """Have the background thread flush now, and call `then` when that is done or has failed."""
        self._then.append(then)
        self._wake.set()

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._closed = True
        self._wake.set()
        self.flush()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_EVERY_S)
            self._wake.clear()
            waiting = [self._then.popleft() for _ in range(len(self._then))]
            self.flush()
            for then in waiting:
                then()
