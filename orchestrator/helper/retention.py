"""Retention beside training: verify what was committed, then give up what is older."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.records import LogRecord
from orchestrator.domain.selection import best, to_retire
from orchestrator.errors import CheckpointError, NotOwner, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.evaluations import loss_of, read_evaluations
from orchestrator.run_directory.log_integrity import require_whole
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.tiers import LocalTier, upload
from orchestrator.storage.protocol import HasUploads, Storage

STALE_S = 86_400.0
"""Age at which an upload is nobody's any more, whoever began it."""

Report = Callable[[str, dict[str, Any]], None]


class Retention:
    """One background thread of slot 0's helper; its only state is what it has verified."""

    def __init__(
        self,
        storage: Storage,
        attempt: int,
        keep_last: int,
        report: Report,
        tier: LocalTier | None = None,
        keep_best: int = 0,
    ) -> None:
        self._storage = storage
        self._tier = tier
        self._log = RunLog(storage)
        self._attempt = attempt
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._evaluations: dict[int, float] = {}
        """What this attempt has heard of; earlier ones are read when they matter first."""
        self._earlier: dict[int, float] | None = None
        self._report = report
        self._litter: int | None = None
        """The newest step whose save has failed, or was given up, until what it left is gone."""
        self._verified: set[int] = set()
        self._uploaded: set[int] = set()
        self._wanted: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="retention", daemon=True)

    def start(self, resumed_from: int | None) -> None:
        """Begin; the commit resumed from has been verified already."""
        if resumed_from is not None:
            self._verified.add(resumed_from)
        self._wanted.put("clean")
        if self._tier is not None:
            self._wanted.put("retain")
        self._begin()

    def committed(self) -> None:
        """A new checkpoint stands: look after it."""
        self._wanted.put("retain")
        self._begin()

    def heard(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take an event of this attempt, in the order in which things happened."""
        if kind == "committed":
            self.committed()
        elif kind in ("save_failed", "save_superseded"):
            self._litter = max(self._litter or 0, int(data.get("step") or 0))
            if kind == "save_failed":
                # What is given up, or left over, may be the room that the next one lacks.
                self._wanted.put("clean")
                self._wanted.put("retain")
                self._begin()
        elif kind == "evaluated":
            known = loss_of(data)
            self._evaluations.update([known] if known else [])

    def _begin(self) -> None:
        """Also by the first commit: a restarted helper never learns where it resumed from."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def uploads(self) -> bool:
        """Commits reach the durable storage only through here."""
        return self._tier is not None and self._tier.commits

    def finish(self, seconds: float) -> None:
        """End after what is queued, waiting at most `seconds`."""
        self._wanted.put("end")
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while (task := self._wanted.get()) != "end":
            try:
                if task == "clean":
                    self.clean_leftovers()
                else:
                    self.retain()
            except NotOwner:
                return
            except (StorageError, CheckpointError) as fault:
                self._report("warning", {"message": f"retention: {fault.message}"})

    def retain(self) -> None:
        """Verify the newest checkpoint and give up those beyond `keep_last`."""
        live = checkpoints.live_commits(self._log.read())
        if live and not self._upload(live[-1]):
            return
        if live and live[-1].seq not in self._verified:
            newest = live[-1]
            try:
                checkpoints.verify(self._storage, newest)
            except checkpoints.Unreadable:
                raise
            except CheckpointError as fault:
                checkpoints.mark_bad(self._log, self._attempt, newest, fault.message)
                self._report(
                    "checkpoint_bad",
                    {
                        "directory": newest.commit().directory,
                        "step": newest.commit().step,
                        "reason": fault.message,
                    },
                )
                return
            self._verified.add(newest.seq)
            self._report("verified", {"step": newest.commit().step, "seq": newest.seq})
        self._sweep_failed(live)
        pinned = self._pinned(live)
        surplus = to_retire(live, keep_last=self._keep_last, verified=self._verified, pinned=pinned)
        if surplus or self._tier is not None:
            require_whole(self._storage, self._log.read())
        for record in surplus:
            checkpoints.retire(self._storage, self._log, self._attempt, record, "keep_last")
            self._report(
                "retired",
                {
                    "step": record.commit().step,
                    "directory": record.commit().directory,
                },
            )
        if self._tier is not None:
            kept = [r for r in live if r in live[-self._keep_last :] or r.seq in pinned]
            self._tier.drop_all_but({r.commit().directory for r in kept})

    def _pinned(self, live: Sequence[LogRecord]) -> frozenset[int]:
        """The best by evaluation, over all attempts. StorageError: then nothing is given up."""
        if not self._keep_best:
            return frozenset()
        if self._earlier is None:
            self._earlier = read_evaluations(self._storage)
        return best(live, {**self._earlier, **self._evaluations}, self._keep_best)

    def _upload(self, record: LogRecord) -> bool:
        """See that a checkpoint of the local tier is in the durable storage too.

        False if it is not: then it may not count as the newer one of anything.
        """
        body = record.commit()
        if body.tier != "local" or record.seq in self._uploaded:
            return True
        if checkpoints.is_there(self._storage, body.directory):
            self._uploaded.add(record.seq)
            return True
        if self._tier is None or not self._tier.holds(record):
            return False
        size = upload(self._tier, self._storage, record)
        self._uploaded.add(record.seq)
        self._report("uploaded", {"step": body.step, "size_bytes": size})
        return True

    def clean_leftovers(self) -> None:
        """Remove files of earlier (fenced) attempts that no living record names.

        Nothing while the log is not whole (LogDamaged): what it lacks may name any of them.
        """
        view = self._log.read()
        require_whole(self._storage, view)
        self._abort_uploads()
        for directory in checkpoints.leftovers(self._storage, view, self._attempt):
            checkpoints.remove_files(self._storage, directory)

    def _sweep_failed(self, live: Sequence[LogRecord]) -> None:
        newest = live[-1] if live and live[-1].attempt == self._attempt else None
        failed = self._litter
        if failed is not None and newest is not None and newest.commit().step > failed:
            self._sweep(self._log, newest.commit().step)
            self._litter = None

    def _sweep(self, log: RunLog, step: int) -> None:
        """Remove what failed saves of earlier steps have left: no commit of them can come any
        more once that of `step` stands.
        """
        view = log.read()
        for directory in checkpoints.leftovers(self._storage, view, self._attempt + 1):
            older = layout.is_checkpoint_before(directory, self._attempt, step)
            if older and not view.unreadable:
                checkpoints.remove_files(self._storage, directory)

    def sweep_ended(self) -> None:
        """The same for all steps, once every process of this attempt has ended. Not on an object
        store, where a request of theirs may still be on its way: the next attempt does it there.
        """
        if self._storage.local_path(layout.LOG) is None:
            return
        self._sweep(RunLog(self._storage), sys.maxsize)

    def _abort_uploads(self) -> None:
        """Give up uploads of fenced attempts, and whatever is older than any save takes."""
        if not isinstance(self._storage, HasUploads):
            return
        fenced = {layout.attempt_dir(n) for n in range(1, self._attempt)}
        day_ago = SystemClock().now() - STALE_S
        for pending in list(self._storage.uploads()):
            folder = "/".join([*pending.path.split("/")[:2], ""])
            if folder in fenced or pending.begun < day_ago:
                self._storage.abort_upload(pending)
