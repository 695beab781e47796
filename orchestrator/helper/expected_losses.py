"""Looking up what the ranks of this attempt must compute again (see domain.recompute)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.contract.interrupted import ALLOW, Interrupted, read_interrupted
from orchestrator.contract.spec import StartPoint
from orchestrator.domain.recompute import Expected, expect, same_state
from orchestrator.errors import CheckpointError, StorageError
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import read_events
from orchestrator.storage.protocol import Storage


@dataclass(frozen=True, slots=True)
class Lookup:
    """By the helper of one slot of an attempt."""

    storage: Storage
    log: RunLog
    attempt: int
    slot: int

    def expected(
        self,
        point: StartPoint,
        now: str,
        allowed: Collection[str],
        event: Callable[[str, dict[str, Any]], object],
    ) -> tuple[Interrupted, ...]:
        """What the ranks compare their first losses with; nothing where it cannot be read.

        now: conditions of this attempt
        """
        try:
            found = self._newest(point, now, allowed)
        except (StorageError, CheckpointError) as fault:
            text = f"the losses of the attempt before cannot be read: {fault.message}"
            event("warning", {"message": text})
            return ()
        if found.skipped and self.slot == 0:
            event("reproduced", {"step": point.step, "not_compared": found.skipped})
        return found.records

    def _newest(self, point: StartPoint, now: str, allowed: Collection[str]) -> Expected:
        """Of the newest attempt that was in this state and was stopped within its next step."""
        log = self.log.read().records
        for number in range(self.attempt - 1, 0, -1):
            if not same_state(number, attempts.read_start(self.storage, number), point, log):
                continue
            found = expect(list(self._interrupted(number)), point.step, now)
            if found.records or found.skipped:
                return Expected(skipped=f"--allow-change {ALLOW}") if ALLOW in allowed else found
        return Expected()

    def _interrupted(self, attempt: int) -> Iterator[Interrupted]:
        for line in read_events(self.storage, attempt, ("interrupted",)):
            record = read_interrupted(line["data"])
            if record is not None:
                yield record
