"""Which step stands, and the ways out that depend on it: save, stop, finish."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.contract.jsonio import Json, from_json
from orchestrator.contract.manifest import CheckpointManifest, Trigger
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import StorageError
from trainer.checkpoint.background import Background
from trainer.checkpoint.commit import Committer
from trainer.checkpoint.shards import Committed, Failed, failed, together
from trainer.checkpoint.votes import DEFAULT_UNSAVED_S, Vote, Votes
from trainer.collectives.group import Group
from trainer.process.outcome import Ending, Leave, preempted
from trainer.process.rank import Rank

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

Write = Callable[[int, Trigger, bool], Committed | Failed]
"""Writes and commits a step: (step, trigger, an evaluation is pending). Collective."""
Salvage = Callable[[int], int]
"""Stores the adapter of a step alone; returns its bytes. Raises StorageError. Rank 0 only."""
Stage = Callable[[int, Trigger, bool], None]
"""Hands the present state to the saver process. Every rank at the same place."""


class CheckpointCoordinator:
    """Every method is called by all ranks at the same place.

    write, stage: save the present state, waiting for it or beside training
    salvage: stores the adapter alone
    manifest: of the checkpoint that the attempt began with
    save_seconds: what the last save took, in whatever attempt
    on_commit: called after each save that training goes on after
    """

    def __init__(
        self,
        rank: Rank,
        group: Group,
        votes: Votes,
        committer: Committer,
        background: Background,
        *,
        write: Write,
        stage: Stage,
        salvage: Salvage,
        start: StartPoint,
        manifest: CheckpointManifest | None,
        save_seconds: float | None,
        on_commit: Callable[[], object] = lambda: None,
    ) -> None:
        self._rank = rank
        self._group = group
        self._votes = votes
        self._committer = committer
        self._background = background
        self._write = write
        self._stage = stage
        self._salvage = salvage
        self._save_seconds = save_seconds
        self._on_commit = on_commit
        self._late_commit = False
        self._failure = Failed("the storage does not answer", storage=True)
        """The last save that failed; until then, what is wrong with one that does not end."""
        self._superseded: list[tuple[int, str]] = []
        self._stands: Committed | None = None
        if manifest is not None:
            self._stands = Committed(
                step=manifest.step, seq=start.commit_seq, adapter_sha256=manifest.adapter_sha256
            )

    def vote(self, step: int | None = None) -> Vote:
        """All ranks vote (see Votes.cast), and learn what became of a save beside training.

        Raises as Committer.commit what must end the attempt.
        """
        vote = self._votes.cast(step)
        if vote.news:
            self._learn()
        elif not (self._background.alive or self._background.busy):
            self._rank.warn("saver", "the saver process has died and was started again")
            self._background.renew()
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
        self._stage(step, "interval", pending_eval)
        self._rank.beat("training")
        self._votes.saved()
        stall = round(time.monotonic() - started, 4)
        self.tell("save_started", step=step, trigger="interval", stall_s=stall)

    def save(self, step: int, trigger: Trigger, *, pending_eval: bool = False) -> bool:
        """Commit `step` now; False if that failed.

        Raises as Committer.commit what must end the attempt.
        """
        started = time.monotonic()
        self._rank.beat("saving")
        outcome = self._committer.settled(step)
        if not isinstance(outcome, Committed):
            self.tell("save_started", step=step, trigger=trigger)
            outcome = self._write(step, trigger, pending_eval)
        return self._took(outcome, step, trigger, time.monotonic() - started)

    def stop(self, step: int, *, micro: int | None = None, pending_eval: bool = False) -> NoReturn:
        """Serve an agreed stop: commit `step` unless it stands, and leave.

        micro: micro-batches of the next step that are given up; None = at a boundary
        """
        self._rank.phase("stopping")
        since = round(self._rank.board.seconds_since(), 4)
        self.tell("stop_agreed", step=step, micro_batch=micro, seconds_since_notice=since)
        self._settle(step)
        if step == 0 or (self._stands is not None and self._stands.step == step):
            self.tell("save_skipped", step=step)
            # A periodic save may have been committed after the notice and before this.
            late = bool(self._group.maximum([int(self._late_commit)])[0])
            raise preempted(committed=late, message=f"step {step} needed no saving")
        self._salvage_if_late(step)
        tries = 0
        while not self.save(step, "notice", pending_eval=pending_eval):
            tries += 1
            self._free_superseded()
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
            self.save(step, "final")
            last = self._stands
        if last is None or last.step != step or last.seq is None:
            return False
        try:
            self._committer.finish(last)
        except StorageError as fault:
            self._failure = failed(fault)
            return False
        return True

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
            size = self._salvage(step)
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
        end, pause_s = self._patience_end(), FIRST_PAUSE_S
        unsaved = f"nothing was saved for {self._votes.unsaved_s:.0f} s"
        self.tell("warning", message=f"{unsaved}: training waits for a checkpoint")
        while True:
            self._stage(step, "interval", pending_eval)
            self._await_save(step, pending_eval, end)
            if self._stands is not None and self._stands.step == step:
                return
            self._pause(step, pause_s, end, pending_eval=pending_eval)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if isinstance(found := self._committer.settled(step), Committed):
                self._took(found, step, "interval", pause_s)
                return

    def _await_save(self, step: int, pending_eval: bool, end: float) -> None:
        """Until nothing is in hand; serves a stop, and leaves at `end` (of rank 0's clock)."""
        while self._learn() is not None:
            self._background.wait(("ended",) if self._group.rank == 0 else ("written",), TURN_S)
            vote = self._votes.cast()
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
        if self._votes.cast().stop:
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

    def _free_superseded(self) -> None:
        """The room of a save that was given up may be what this one lacks."""
        while self._superseded:
            self._committer.free(*self._superseded.pop())

    # --- saves beside training

    def _settle(self, step: int) -> None:
        """Leave nothing in hand: join the save of this very step, give up that of an older one."""
        in_hand = self._learn()
        if in_hand is None:
            return
        if in_hand == step:
            self._join()
            in_hand = self._learn()
        if in_hand is not None:
            self._superseded.append((in_hand, self._background.directory))
            self._background.give_up()
            self._committer.doubt(in_hand)
            self.tell("save_superseded", step=in_hand)

    def _join(self) -> None:
        limit = min(JOIN_S, JOIN_SHARE * self._rank.board.seconds_left())
        end = time.monotonic() + limit
        self._background.wait(("written", "ended"), limit)
        reports = self._group.gather(self._background.report())
        if self._group.rank == 0 and all(r["phase"] in ("written", "ended") for r in reports):
            self._background.wait(("ended",), end - time.monotonic())

    def _learn(self) -> int | None:
        """Compare what the ranks know; the step of a save that is still under way."""
        reports: list[Json] = self._group.gather(self._background.report())
        steps = [r["step"] for r in reports if r["step"] is not None]
        if not steps:
            return None
        step = max(steps)
        first = reports[0]
        faults = {i: from_json(Failed, r["error"]) for i, r in enumerate(reports) if r["error"]}
        if first["phase"] == "ended":
            outcome = self._committer.learn(first["reply"])
        elif faults:
            self._background.renew()
            self._committer.doubt(step)
            outcome = self._committer.settled(step)
            if outcome is None:
                fault = together(faults)
                outcome = replace(fault, uncertain=fault.uncertain and not self._committer.prompt)
        else:
            return int(step)
        if outcome is None or isinstance(outcome, Failed):
            outcome = outcome or Failed("rank 0's saver gave no outcome", uncertain=True)
            self._after_failure(step, outcome)
        self._background.clear()
        self._took(outcome, step, "interval", first["seconds"])
        return None

    def _after_failure(self, step: int, outcome: Failed) -> None:
        if outcome.uncertain:
            self._committer.doubt(step)
        # From here on no saver of any rank writes into that directory.
        self._group.gather(None)
        self._background.after_failure(discard=self._group.rank == 0 and not outcome.uncertain)

    def _took(
        self, outcome: Committed | Failed, step: int, trigger: Trigger, seconds: float
    ) -> bool:
        if isinstance(outcome, Failed):
            self._failure = outcome
            words, storage = outcome.message, outcome.storage
            self.tell("save_failed", step=step, trigger=trigger, message=words, storage=storage)
            return False
        self._stands = outcome
        self._votes.committed()
        if outcome.oversize:
            self.tell("warning", message=outcome.oversize)
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
            commit_seq=outcome.seq,
            seconds=round(seconds, 4),
            size_bytes=outcome.size_bytes,
            adapter_sha256=outcome.adapter_sha256,
            seconds_since_notice=round(board.seconds_since(), 4) if board.raised else None,
        )
        return True
