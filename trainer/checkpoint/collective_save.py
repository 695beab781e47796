"""Saves that all ranks make together, waited for or beside training; all learn what became of one.

Either way: every rank's files are durable, then its shard's manifest; rank 0 commits
(`trainer.checkpoint.commit`); all ranks learn the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from orchestrator.contract import layout
from orchestrator.contract.jsonio import from_json, to_json
from orchestrator.contract.manifest import ShardManifest, Trigger
from orchestrator.run_directory.checkpoints import discard
from trainer.checkpoint.async_saver import AsyncSaver, Describe
from trainer.checkpoint.commit import Committer
from trainer.checkpoint.save_result import (
    Committed,
    Failed,
    decode,
    encode,
    failed,
    result_of,
    together,
)
from trainer.checkpoint.shards import Directories, FileWriter, ShardWriter, Tiers
from trainer.collectives.group import Group
from trainer.tracking.metrics import MetricsLog


class Source(Protocol):
    """The state that checkpoints are made of."""

    def capture(
        self, writer: FileWriter, step: int, trigger: Trigger, *, pending_eval: bool
    ) -> Describe:
        """All files of this rank into `writer`; collective, whatever has failed before.

        The state may change once this has returned.
        """

    def adapter_files(self) -> Mapping[str, bytes]:
        """The adapter alone, its tensors first."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A save beside training that is over."""

    step: int
    result: Committed | Failed
    seconds: float


class CollectiveSaver:
    """One save at a time. Every method is called by all ranks at the same place."""

    def __init__(  # noqa: PLR0913
        self,
        group: Group,
        source: Source,
        metrics: MetricsLog,
        *,
        tiers: Tiers,
        committer: Committer,
        beside: AsyncSaver,
        directories: Directories,
    ) -> None:
        self._group = group
        self._source = source
        self._metrics = metrics
        self._tiers = tiers
        self._committer = committer
        self._beside = beside
        self._directories = directories
        self._tiered = True
        """The local tier may be used, if there is one; until a save has failed."""
        self._directory = ""
        """Of the save in hand."""
        self._doubtful: set[int] = set()
        """Steps whose commit may stand although no reply came."""
        self._given_up: list[tuple[int, str]] = []

    # --- a save that training waits for

    def save(self, step: int, trigger: Trigger, *, pending_eval: bool) -> Committed | Failed:
        """Save and commit now. Raises Leave for what must end the attempt."""
        place = self._tiers.place(tiered=self._tiered)
        writer = ShardWriter(place, self._directories.next(step))
        self._metrics.flush()
        digests, head = self._source.capture(writer, step, trigger, pending_eval=pending_eval)()
        shard = writer.finish(self._group.rank, digests)
        error = None if writer.error is None else to_json(failed(writer.error))
        replies = self._group.gather({"error": error, "shard": to_json(shard)})
        faults = {i: from_json(Failed, r["error"]) for i, r in enumerate(replies) if r["error"]}

        def commit() -> Committed | Failed:
            if faults:
                return together(faults)
            shards = [from_json(ShardManifest, reply["shard"]) for reply in replies]
            return self._committer.commit(writer.directory, shards, head, place)

        self._doubtful.add(step)
        result = self._agreed(commit)
        if isinstance(result, Committed):
            return result
        result = result or Failed("rank 0 gave no result", uncertain=True)
        if self._group.rank == 0 and not result.uncertain:
            discard(place.storage, writer.directory)
        self._tiered = False
        return result

    def settled(self, step: int) -> Committed | Failed | None:
        """The commit of `step` whose reply was lost, if it stands after all; Failed where the log
        does not answer, so that it is still in doubt.

        Must be asked before the step would be saved again. A reply may be lost after the record
        was stored, by a broken connection or by a saver that was killed: a second commit of the
        step would be harmless, but files of the first one would be removed as those of a failure
        while its record stands. So nothing is removed until the log has said that it does not.
        """
        if step not in self._doubtful:
            return None
        return self._agreed(lambda: self._committer.find(step))

    def finish(self, last: Committed) -> Failed | None:
        """Mark the run done; what kept from it."""

        def append() -> Committed:
            self._committer.finish(last)
            return last

        found = self._agreed(append)
        if not isinstance(found, Failed):
            return None
        words = f"the run is complete but cannot be marked so: {found.message}"
        return Failed(words, storage=True)

    def salvage(self, step: int) -> int:
        """Store the adapter alone, on rank 0; returns its bytes. Raises StorageError."""
        files = self._source.adapter_files()
        self._committer.salvage(step, files)
        return len(next(iter(files.values())))

    # --- a save beside training

    @property
    def in_hand(self) -> int | None:
        """Step of the save that is under way."""
        return self._beside.step

    @property
    def news(self) -> bool:
        """This rank knows something of it that all ranks should learn."""
        return self._beside.news

    def revive(self) -> bool:
        """Start a saver process that has died while nothing was in hand; for this rank alone."""
        dead = self.in_hand is None and not self._beside.alive
        if dead:
            self._beside.renew()
        return dead

    def close(self) -> None:
        """End the saver process, whatever it has in hand; for this rank alone."""
        self._beside.close()

    def begin(self, step: int, trigger: Trigger, *, pending_eval: bool) -> None:
        """Copy the state; all else happens beside training. Only while nothing is in hand."""
        writer = self._beside.writer()
        describe = self._source.capture(writer, step, trigger, pending_eval=pending_eval)
        self._directory = self._directories.next(step)
        self._beside.submit(step, self._directory, writer, describe, tiered=self._tiered)
        self._metrics.flush_soon(lambda: self._beside.metrics_are_durable(step))

    def learn(self) -> Ended | None:
        """Compare what the ranks know; None while the save is under way, or where none is.

        Raises Leave for what must end the attempt.
        """
        step = self.in_hand
        if step is None:
            return None
        reports = self._group.gather(self._beside.report())
        # Rank 0's word comes first: its saver commits only what all shards stand for, so where it
        # has a result, the trouble of another saver after its shard was durable changes nothing.
        first = reports[0]
        results = [decode(report["result"]) for report in reports]
        faults = {i: found for i, found in enumerate(results) if isinstance(found, Failed)}
        result: Committed | Failed | None
        if first["phase"] == "ended":
            result = self._known(results[0])
        elif faults:
            result = self._after_a_fault(step, faults)
        else:
            return None
        if not isinstance(result, Committed):
            result = result or Failed("rank 0's saver gave no result", uncertain=True)
            self._clean_up(step, result)
        self._beside.clear()
        return Ended(step, result, float(first["seconds"]))

    def wait(self, seconds: float) -> None:
        """Until this rank's own part of the save is over, or time is up."""
        self._beside.wait(("ended",) if self._group.rank == 0 else ("written",), seconds)

    def join(self, seconds: float) -> None:
        """Until the save is over; `seconds` at most, of which each rank has its own."""
        end = time.monotonic() + seconds
        self._beside.wait(("written", "ended"), seconds)
        reports = self._group.gather(self._beside.report())
        if self._group.rank == 0 and all(r["phase"] in ("written", "ended") for r in reports):
            self._beside.wait(("ended",), end - time.monotonic())

    def give_up(self) -> None:
        """End the save in hand wherever it stands.

        Its saver may have sent the commit record a moment ago: the step is in doubt, and what
        was written stays until `free_given_up` has asked the log.
        """
        step = self.in_hand
        if step is not None:
            self._given_up.append((step, self._directory))
            self._beside.give_up()
            self._doubtful.add(step)

    def free_given_up(self) -> None:
        """Remove what saves that were given up have written, unless they stand: the room may be
        what the next save lacks.
        """
        while self._given_up:
            step, directory = self._given_up.pop()
            if self._prompt and self.settled(step) is None and self._group.rank == 0:
                discard(self._tiers.durable, directory)
                if self._tiers.local is not None:
                    discard(self._tiers.local.storage, directory)

    def _after_a_fault(self, step: int, faults: Mapping[int, Failed]) -> Committed | Failed:
        """Some rank's saver has failed or died: no saver goes on with this save."""
        self._beside.renew()
        self._doubtful.add(step)
        found = self.settled(step)
        if found is not None:
            return found
        fault = together(faults)
        return replace(fault, uncertain=fault.uncertain and not self._prompt)

    def _clean_up(self, step: int, result: Failed) -> None:
        if result.uncertain:
            self._doubtful.add(step)
        # From here on no saver of any rank writes into that directory.
        self._group.gather(None)
        if self._group.rank == 0 and not result.uncertain:
            self._beside.discard(self._directory, tiered=self._tiered)
        self._tiered = False

    # --- what all ranks know

    @property
    def _prompt(self) -> bool:
        """What was not written when its process died will not be written any more."""
        return self._tiers.durable.local_path(layout.LOG) is not None

    def _agreed(self, act: Callable[[], Committed | Failed | None]) -> Committed | Failed | None:
        """What `act` gives on rank 0, on every rank; an Ending is raised on every rank."""
        mine = encode(result_of(act)) if self._group.rank == 0 else None
        return self._known(decode(self._group.share(mine)))

    def _known(self, result: Committed | Failed | None) -> Committed | Failed | None:
        if isinstance(result, Committed):
            self._doubtful.discard(result.step)
        return result
