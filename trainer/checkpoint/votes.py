"""When the ranks stop or save: each asks its own flag and clock, all act on the same answer."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from orchestrator.contract.resolved import CheckpointSpec
from trainer.collectives.group import Group
from trainer.process.notice import NoticeBoard


@dataclass(frozen=True, slots=True)
class Vote:
    """What all ranks agreed upon."""

    stop: bool
    save_due: bool = False
    news: bool = False
    """Some rank knows what became of a save beside training."""
    overdue: bool = False
    """Nothing was committed for `checkpoint.max_unsaved`."""


DEFAULT_UNSAVED_S = 1800.0
UNSAVED_INTERVALS = 4
"""`checkpoint.max_unsaved` by default: the longer of the two."""
SHORTEST_TRIES_S, LAST_TRIES_S = 5.0, 300.0


class Votes:
    """The votes of the training loop; the first one ends the loading phase of the rank."""

    def __init__(self, group: Group, board: NoticeBoard, spec: CheckpointSpec) -> None:
        self._group = group
        self._board = board
        self._spec = spec
        self._saved_at = time.monotonic()
        self._committed_at: float | None = None
        """Of the last commit; before any, of the first vote."""
        self._overdue = False
        self._begun_at: float | None = None
        self._interval_s = math.inf
        """The longest time between two periodic saves; infinite while none was due."""

    def saved(self) -> None:
        """The state is on its way into a checkpoint: `every_minutes` counts from here."""
        self._saved_at = time.monotonic()

    def begun(self) -> None:
        """A periodic save begins: the intervals of `max_unsaved` are counted by these."""
        now = time.monotonic()
        before = 0.0 if math.isinf(self._interval_s) else self._interval_s
        self._interval_s = max(before, now - (self._begun_at or now))
        self._begun_at = now

    def committed(self) -> None:
        """A checkpoint stands: `max_unsaved` counts from here."""
        self._committed_at = time.monotonic()

    @property
    def unsaved_s(self) -> float:
        """Seconds since the last commit of this attempt, or since its first vote."""
        return 0.0 if self._committed_at is None else time.monotonic() - self._committed_at

    @property
    def overdue(self) -> bool:
        """As all ranks agreed at the last vote."""
        return self._overdue

    @property
    def limit_s(self) -> float:
        """`checkpoint.max_unsaved` in seconds, as far as this rank knows."""
        given = self._spec.max_unsaved_s
        return given or max(DEFAULT_UNSAVED_S, UNSAVED_INTERVALS * self._interval_s)

    @property
    def patience_s(self) -> float:
        """How long the last tries may take, once nothing was committed for `limit_s`."""
        return max(SHORTEST_TRIES_S, min(LAST_TRIES_S, self.limit_s / 4))

    def cast(self, step: int | None = None, *, news: bool = False) -> Vote:
        """One vote. Collective.

        step: given at a step's boundary, where a periodic save may be due
        news: this rank knows what became of a save beside training

        A notice reaches the ranks at different moments, and so does the clock's minute: whoever
        acted on its own flag would wait in a collective that the others never enter. So nobody
        acts but on the maximum of all flags, and all vote at the same places: after each fetch
        of a window and before its first forward pass, after each micro-batch, at the boundary.
        """
        self._board.enter_loop()
        if self._committed_at is None:
            self._committed_at = self._begun_at = time.monotonic()
        overdue = self._group.rank == 0 and self.unsaved_s >= self.limit_s
        due = step is not None and (overdue or self._due(step))
        flags = (self._board.raised, due, news, overdue)
        vote = Vote(*map(bool, self._group.maximum([int(flag) for flag in flags])))
        self._overdue = vote.overdue
        return vote

    def _due(self, step: int) -> bool:
        """By steps on every rank alike, by minutes on the clock of rank 0."""
        every = self._spec.every_steps
        if every is not None and step % every == 0:
            return True
        minutes = self._spec.every_minutes
        if minutes is None or self._group.rank != 0:
            return False
        return time.monotonic() - self._saved_at >= 60 * minutes
