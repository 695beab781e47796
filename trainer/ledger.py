"""Which step stands, and the ways out that depend on it: save, stop, finish."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from orchestrator.contract.codes import ExitCode
from orchestrator.contract.manifest import CheckpointManifest, Trigger
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import StorageError
from trainer.commit import Committed, Committer, Failed
from trainer.group import Group
from trainer.outcome import Ending, Leave, preempted
from trainer.rank import Rank
from trainer.votes import Votes

SAVE_TRIES = 2
"""How often a save is tried that is not repeated by itself: at a notice and at the end."""

Write = Callable[[int, Trigger, bool], Committed | Failed]
"""Writes and commits a step: (step, trigger, an evaluation is pending). Collective."""


class Ledger:
    """Every method is called by all ranks at the same place.

    write: saves the present state
    manifest: of the checkpoint that the attempt began with
    """

    def __init__(
        self,
        rank: Rank,
        group: Group,
        votes: Votes,
        committer: Committer,
        write: Write,
        start: StartPoint,
        manifest: CheckpointManifest | None,
    ) -> None:
        self._rank = rank
        self._group = group
        self._votes = votes
        self._committer = committer
        self._write = write
        self._late_commit = False
        self._stands: Committed | None = None
        if manifest is not None:
            self._stands = Committed(
                step=manifest.step, seq=start.commit_seq, adapter_sha256=manifest.adapter_sha256
            )

    def save(self, step: int, trigger: Trigger, *, pending_eval: bool = False) -> bool:
        """Commit `step`; False if that failed, and training may go on.

        Raises as Committer.commit what must end the attempt.
        """
        started = time.monotonic()
        outcome = self._committer.settled(step)
        if not isinstance(outcome, Committed):
            self.tell("save_started", step=step, trigger=trigger)
            outcome = self._write(step, trigger, pending_eval)
        if isinstance(outcome, Failed):
            self.tell("save_failed", step=step, trigger=trigger, message=outcome.message)
            return False
        self._stands = outcome
        self._votes.saved()
        board = self._rank.board
        self._late_commit |= board.raised
        self.tell(
            "committed",
            step=step,
            trigger=trigger,
            commit_seq=outcome.seq,
            seconds=round(time.monotonic() - started, 4),
            size_bytes=outcome.size_bytes,
            adapter_sha256=outcome.adapter_sha256,
            seconds_since_notice=round(board.seconds_since(), 4) if board.raised else None,
        )
        return True

    def stop(self, step: int, *, micro: int | None = None, pending_eval: bool = False) -> NoReturn:
        """Serve an agreed stop: commit `step` unless it stands, and leave.

        micro: micro-batches of the next step that are given up; None = at a boundary
        """
        self._rank.phase("stopping")
        since = round(self._rank.board.seconds_since(), 4)
        self.tell("stop_agreed", step=step, micro_batch=micro, seconds_since_notice=since)
        if step == 0 or (self._stands is not None and self._stands.step == step):
            self.tell("save_skipped", step=step)
            # An interval save may have been committed after the notice and before this vote.
            late = bool(self._group.maximum([int(self._late_commit)])[0])
            raise preempted(committed=late, message=f"step {step} needed no saving")
        for _ in range(SAVE_TRIES):
            if self.save(step, "notice", pending_eval=pending_eval):
                raise preempted(committed=True, message=f"committed step {step}")
        raise preempted(committed=False, message=f"step {step} could not be saved")

    def finish(self, step: int) -> NoReturn:
        """The last step is done: commit it unless it stands, mark the run done, leave."""
        tries = 0
        while (last := self._stands) is None or last.step != step or last.seq is None:
            if tries == SAVE_TRIES:
                raise StorageError(f"the last step, {step}, cannot be saved")
            self.save(step, "final")
            tries += 1
        self._committer.finish(last)
        self.tell("finished", step=step, adapter_sha256=last.adapter_sha256)
        raise Leave(Ending(ExitCode.DONE, "done", f"{step} steps"))

    def tell(self, kind: str, **data: Any) -> None:
        """Report an event once for all ranks."""
        if self._group.rank == 0:
            self._rank.event(kind, **data)
