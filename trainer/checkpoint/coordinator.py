"""One checkpointer: which step stands, saves, and the ways out that depend on it.

The face of this room, for the training loop and for the fake trainer:

    poll        at every place where all ranks may stop; learns what became of a save
    begin_save  beside training
    stop        serve a notice: commit, unless the step stands, and leave
    finish      commit the last step, mark the run done, leave
    close       give up whatever is in hand

What is saved comes from a `collective_save.Source`; how it is saved is told there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.contract.manifest import CheckpointManifest, Trigger
from orchestrator.contract.spec import Assignment
from orchestrator.errors import StorageError
from orchestrator.run_directory.tiers import local_tier
from orchestrator.storage.opening import open_storage
from trainer.checkpoint.async_saver import AsyncSaver
from trainer.checkpoint.collective_save import CollectiveSaver, Source
from trainer.checkpoint.commit import BaseFacts, Committer
from trainer.checkpoint.save_result import Committed, Failed
from trainer.checkpoint.shards import Directories, Tiers
from trainer.checkpoint.votes import DEFAULT_UNSAVED_S, Vote, Votes
from trainer.collectives.group import Group
from trainer.process.outcome import Ending, Leave, preempted
from trainer.process.rank import Rank
from trainer.tracking.metrics import MetricsLog

SAVE_TRIES = 2
"""How often a save is tried that is not repeated by itself: at a notice and at the end."""
JOIN_SHARE = 0.5
"""Part of the seconds left that a save already on its way may take before it is begun anew."""
JOIN_S = 120.0
MARGIN = 1.5
"""A save may take so much longer than the last one."""
UNKNOWN_S = 5.0
"""With less time left than this, a first save is not relied upon."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Between two tries to save into a storage that takes no writes."""
WAY_OUT_S = 4.0
"""Before the kill, for leaving."""
TURN_S = 0.2
"""How often the ranks look up while they wait for the save before."""


class CheckpointCoordinator:
    """Every method but `close` is called by all ranks at the same place.

    source: the state that is saved
    metrics: of this rank; durable before the step is committed
    manifest: of the checkpoint that the attempt began with
    on_commit: called after each save that training goes on after
    saver: module of the saver process
    """

    def __init__(  # noqa: PLR0913
        self,
        rank: Rank,
        group: Group,
        assignment: Assignment,
        source: Source,
        metrics: MetricsLog,
        *,
        manifest: CheckpointManifest | None,
        base: BaseFacts | None = None,
        on_commit: Callable[[], object] = lambda: None,
        saver: str = "trainer.checkpoint.saver_process",
    ) -> None:
        self._rank = rank
        self._group = group
        self._votes = Votes(group, rank.board, assignment.job.checkpoint)
        tiers = Tiers(
            open_storage(assignment.storage, seconds_left=rank.board.seconds_left),
            local_tier(assignment.job.checkpoint, assignment.run_id),
        )
        self._saver = CollectiveSaver(
            group,
            source,
            metrics,
            tiers=tiers,
            committer=Committer(tiers, assignment, base),
            beside=AsyncSaver(assignment, rank.number, base, saver),
            directories=Directories(assignment.attempt),
        )
        self._save_seconds = assignment.save_seconds
        """What the last save took, in whatever attempt."""
        self._on_commit = on_commit
        self._late_commit = False
        self._failure = Failed("the storage does not answer", storage=True)
        """The last save that failed; until then, what is wrong with one that does not end."""
        self._stands: Committed | None = None
        if manifest is not None:
            self._stands = Committed(
                step=manifest.step,
                seq=assignment.start.commit_seq,
                adapter_sha256=manifest.adapter_sha256,
            )

    def close(self) -> None:
        """End the saver process, whatever it has in hand."""
        self._saver.close()

    def poll(self, step: int | None = None) -> Vote:
        """All ranks vote (see Votes.cast), and learn what became of a save beside training.

        Raises Leave for what must end the attempt.
        """
        vote = self._votes.cast(step, news=self._saver.news)
        if vote.news:
            self._learn()
        elif self._saver.revive():
            self._rank.warn("saver", "the saver process has died and was started again")
        return vote

    def begin_save(self, step: int, *, pending_eval: bool = False) -> None:
        """Save `step` beside training; votes tell what becomes of it.

        Waits for an earlier save that is still in hand: what a kill may cost stays below two
        intervals, however slow the storage is.
        """
        started = time.monotonic()
        self._rank.beat("saving")
        overdue, stood = self._votes.overdue, self._stands
        self._await_save(step, pending_eval, self._patience_end() if overdue else math.inf)
        if overdue and self._stands is stood:
            self._insist(step, pending_eval)
            self._rank.beat("training")
            return
        self._votes.begun()
        self._saver.begin(step, "interval", pending_eval=pending_eval)
        self._rank.beat("training")
        self._votes.saved()
        stall = round(time.monotonic() - started, 4)
        self.tell("save_started", step=step, trigger="interval", stall_s=stall)

    def _save(self, step: int, trigger: Trigger, *, pending_eval: bool = False) -> bool:
        """Commit `step` now; False if that failed. Raises Leave for what must end the attempt."""
        started = time.monotonic()
        self._rank.beat("saving")
        result = self._saver.settled(step)
        if not isinstance(result, Committed):
            self.tell("save_started", step=step, trigger=trigger)
            result = self._saver.save(step, trigger, pending_eval=pending_eval)
        return self._took(result, step, trigger, time.monotonic() - started)

    def stop(self, step: int, *, micro: int | None = None, pending_eval: bool = False) -> NoReturn:
        """Serve an agreed stop: commit `step` unless it stands, and leave.

        micro: micro-batches of the next step that are given up; None = at a boundary
        """
        self._rank.phase("stopping")
        since = round(self._rank.board.seconds_since(), 4)
        self.tell("stop_agreed", step=step, micro_batch=micro, seconds_since_notice=since)
        # First the save in hand: it may be of this very step, and a saver at work would share the
        # disk with the save that the notice's seconds are for. Only then is known what stands.
        self._settle(step)
        if step == 0 or (self._stands is not None and self._stands.step == step):
            self.tell("save_skipped", step=step)
            # A periodic save may have been committed after the notice and before this.
            late = bool(self._group.maximum([int(self._late_commit)])[0])
            raise preempted(committed=late, message=f"step {step} needed no saving")
        self._salvage_if_late(step)
        tries = 0
        while not self._save(step, "notice", pending_eval=pending_eval):
            tries += 1
            self._saver.free_given_up()
            if tries >= SAVE_TRIES:
                if not self._failure.storage or self._too_late():
                    why = f"step {step} could not be saved: {self._failure.message}"
                    raise preempted(committed=False, message=why)
                time.sleep(FIRST_PAUSE_S)
        raise preempted(committed=True, message=f"committed step {step}")

    def finish(self, step: int) -> NoReturn:
        """The last step is done: commit it unless it stands, mark the run done, leave."""
        self._rank.beat("saving")
        self._settle(step)
        wait_s = min(DEFAULT_UNSAVED_S, self._votes.limit_s - self._votes.unsaved_s)
        end = time.monotonic() + max(wait_s, self._votes.patience_s)
        tries, pause_s = 0, FIRST_PAUSE_S
        while not self._finished(step):
            tries += 1
            if tries >= SAVE_TRIES:
                self._pause(step, pause_s, end)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        last = self._stands
        assert last is not None
        self.tell("finished", step=step, adapter_sha256=last.adapter_sha256)
        raise Leave(Ending(ExitCode.DONE, "done", f"{step} steps"))

    def _finished(self, step: int) -> bool:
        """One try to commit the last step and to mark the run done."""
        last = self._stands
        if last is None or last.step != step or last.seq is None:
            self._save(step, "final")
            last = self._stands
        if last is None or last.step != step or last.seq is None:
            return False
        fault = self._saver.finish(last)
        self._failure = fault or self._failure
        return fault is None

    def tell(self, kind: str, **data: Any) -> None:
        """Report an event once for all ranks."""
        if self._group.rank == 0:
            self._rank.event(kind, **data)

    def _salvage_if_late(self, step: int) -> None:
        """Store the adapter first where the whole state may not be durable before the kill."""
        needs, left = self._save_seconds, self._rank.board.seconds_left()
        late = left < UNKNOWN_S if needs is None else left < MARGIN * needs
        if self._group.rank != 0 or not late:
            return
        started = time.monotonic()
        try:
            size = self._saver.salvage(step)
        except StorageError as fault:
            self.tell("warning", message=f"the adapter could not be salvaged: {fault.message}")
            return
        self.tell(
            "salvaged",
            step=step,
            size_bytes=size,
            seconds=round(time.monotonic() - started, 4),
            needs_s=needs,
            left_s=round(left, 2),
        )

    # --- a storage that takes no writes

    def _insist(self, step: int, pending_eval: bool) -> None:
        """The last tries of a run that has not saved for `checkpoint.max_unsaved`: training
        waits until one succeeds, or the attempt ends.
        """
        # Every turn is entered by all ranks or by none: what decides (a vote, rank 0's clock, the
        # result of a save) is the same value everywhere.
        end, pause_s = self._patience_end(), FIRST_PAUSE_S
        unsaved = f"nothing was saved for {self._votes.unsaved_s:.0f} s"
        self.tell("warning", message=f"{unsaved}: training waits for a checkpoint")
        while True:
            self._saver.begin(step, "interval", pending_eval=pending_eval)
            self._await_save(step, pending_eval, end)
            if self._stands is not None and self._stands.step == step:
                return
            self._pause(step, pause_s, end, pending_eval=pending_eval)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if isinstance(found := self._saver.settled(step), Committed):
                self._took(found, step, "interval", pause_s)
                return

    def _await_save(self, step: int, pending_eval: bool, end: float) -> None:
        """Until nothing is in hand; serves a stop, and leaves at `end` (of rank 0's clock)."""
        while self._learn() is not None:
            self._saver.wait(TURN_S)
            vote = self._votes.cast(news=self._saver.news)
            if vote.stop:
                self.stop(step, pending_eval=pending_eval)
            if vote.overdue:
                end = min(end, self._patience_end())
            if not math.isinf(end) and self._over(end):
                self._leave_unsaved()
            # Ranks that vote do not hang, however long the storage takes.
            self._rank.beat("saving")

    def _pause(self, step: int, seconds: float, end: float, *, pending_eval: bool = False) -> None:
        """Before another try; none is left after `end`, or where the storage is not to blame."""
        if not self._failure.storage or self._over(end):
            self._leave_unsaved()
        self._rank.beat("saving")
        self._rank.board.wait(seconds)
        if self._votes.cast(news=self._saver.news).stop:
            self.stop(step, pending_eval=pending_eval)

    def _patience_end(self) -> float:
        return time.monotonic() + self._votes.patience_s

    def _over(self, end: float) -> bool:
        """The clock of rank 0 decides for all."""
        over = self._group.rank == 0 and time.monotonic() >= end
        return bool(self._group.maximum([int(over)])[0])

    def _too_late(self) -> bool:
        """On some rank there is no time for another try before the kill."""
        needs = UNKNOWN_S if self._save_seconds is None else MARGIN * self._save_seconds
        left = self._rank.board.seconds_left()
        late = math.isinf(left) or left < needs + WAY_OUT_S
        return bool(self._group.maximum([int(late)])[0])

    def _leave_unsaved(self) -> NoReturn:
        words = f"no checkpoint for {self._votes.unsaved_s:.0f} s: {self._failure.message}"
        code = ExitCode.STORAGE if self._failure.storage else CRASH
        raise Leave(Ending(code, "storage" if self._failure.storage else "crash", words))

    # --- saves beside training

    def _settle(self, step: int) -> None:
        """Leave nothing in hand: join the save of this very step, give up that of an older one."""
        if self._learn() == step:
            board = self._rank.board
            self._saver.join(min(JOIN_S, JOIN_SHARE * board.seconds_left()))
            self._learn()
        superseded = self._saver.in_hand
        if superseded is not None:
            self._saver.give_up()
            self.tell("save_superseded", step=superseded)

    def _learn(self) -> int | None:
        """Take in a save that is over; the step of one that is still under way."""
        ended = self._saver.learn()
        if ended is not None:
            self._took(ended.result, ended.step, "interval", ended.seconds)
        return self._saver.in_hand

    def _took(
        self, result: Committed | Failed, step: int, trigger: Trigger, seconds: float
    ) -> bool:
        if isinstance(result, Failed):
            self._failure = result
            words, storage = result.message, result.storage
            self.tell("save_failed", step=step, trigger=trigger, message=words, storage=storage)
            return False
        self._stands = result
        self._votes.committed()
        if result.oversize:
            self.tell("warning", message=result.oversize)
        self._save_seconds = seconds
        self._votes.saved()
        board = self._rank.board
        self._late_commit |= board.raised
        if trigger == "interval" and not board.raised:
            self._on_commit()
        self.tell(
            "committed",
            step=step,
            trigger=trigger,
            commit_seq=result.seq,
            seconds=round(seconds, 4),
            size_bytes=result.size_bytes,
            adapter_sha256=result.adapter_sha256,
            seconds_since_notice=round(board.seconds_since(), 4) if board.raised else None,
        )
        return True
