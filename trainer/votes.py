"""When the ranks stop or save: each asks its own flag and clock, all act on the same answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orchestrator.contract.resolved import CheckpointSpec
from trainer.background import Background
from trainer.group import Group
from trainer.notice import NoticeBoard


@dataclass(frozen=True, slots=True)
class Vote:
    """What all ranks agreed upon."""

    stop: bool
    save_due: bool = False
    news: bool = False
    """Some rank knows what became of a save beside training."""


class Votes:
    """The votes of the training loop; the first one ends the loading phase of the rank."""

    def __init__(
        self, group: Group, board: NoticeBoard, spec: CheckpointSpec, background: Background
    ) -> None:
        self._group = group
        self._board = board
        self._spec = spec
        self._background = background
        self._saved_at = time.monotonic()

    def saved(self) -> None:
        """The state is on its way into a checkpoint: `every_minutes` counts from here."""
        self._saved_at = time.monotonic()

    def cast(self, step: int | None = None) -> Vote:
        """One vote; `step` is given at a step's boundary, where a periodic save may be due."""
        self._board.enter_loop()
        flags = (self._board.raised, step is not None and self._due(step), self._background.news)
        return Vote(*map(bool, self._group.maximum([int(flag) for flag in flags])))

    def _due(self, step: int) -> bool:
        """By steps on every rank alike, by minutes on the clock of rank 0."""
        every = self._spec.every_steps
        if every is not None and step % every == 0:
            return True
        minutes = self._spec.every_minutes
        if minutes is None or self._group.rank != 0:
            return False
        return time.monotonic() - self._saved_at >= 60 * minutes
