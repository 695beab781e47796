"""All ranks agree on what became of a checkpoint: collectives around `trainer.checkpoint.assemble`.

Order: every rank's files are durable, then its shard manifest; all ranks compare notes; rank 0
commits; all ranks learn the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.clock import SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import Json, from_json, to_json
from orchestrator.contract.manifest import ShardManifest
from orchestrator.contract.records import SalvageRecord
from orchestrator.errors import StorageError
from orchestrator.run_directory.attempts import write_salvage
from orchestrator.run_directory.checkpoints import discard
from orchestrator.run_directory.tiers import LocalTier
from orchestrator.storage.hashing import sha256
from orchestrator.storage.protocol import Storage
from trainer.checkpoint.assemble import Assembler, as_reply, from_reply
from trainer.checkpoint.shards import (
    Committed,
    Digests,
    Failed,
    Head,
    Places,
    ShardWriter,
    failed,
    together,
)
from trainer.collectives.group import Group


class Committer:
    """Turns the shards of all ranks into a checkpoint of this attempt."""

    def __init__(
        self,
        storage: Storage,
        group: Group,
        places: Places,
        assembler: Assembler,
        tier: LocalTier | None = None,
    ) -> None:
        self._storage = storage
        self._local = tier
        self._tier = tier if tier is not None and tier.commits else None
        """Where files go; None = to the durable storage, also once the tier has failed."""
        self._group = group
        self._places = places
        self._assembler = assembler
        self._doubtful: set[int] = set()
        """Steps whose commit may stand although no reply came."""

    def begin(self, step: int) -> ShardWriter:
        """A writer for this rank's files of `step`."""
        return ShardWriter(self._place(), self._places.next(step))

    def _place(self) -> Storage:
        return self._storage if self._tier is None else self._tier.storage

    def doubt(self, step: int) -> None:
        """Somebody may have committed `step` without telling (a saver that was killed)."""
        self._doubtful.add(step)

    @property
    def prompt(self) -> bool:
        """What was not written when its process died will not be written any more."""
        return self._storage.local_path(layout.LOG) is not None

    def free(self, step: int, directory: str) -> None:
        """Remove what a save that was given up has written, unless it stands. Collective."""
        if self.prompt and self.settled(step) is None and self._group.rank == 0:
            discard(self._storage, directory)
            if self._local is not None:
                discard(self._local.storage, directory)

    def settled(self, step: int) -> Committed | Failed | None:
        """The commit of `step` whose reply was lost, if it stands after all. Collective.

        Must be asked before the files of that step would be written again.
        """
        if step not in self._doubtful:
            return None
        return self._agree(lambda: self._assembler.find(step))

    def commit(self, writer: ShardWriter, digests: Digests, head: Head) -> Committed | Failed:
        """Commit what all ranks wrote. Collective.

        Raises on every rank NotOwner, LogDamaged, BaseChanged or ContractRefused; every other
        failure is returned.
        """
        shard = writer.finish(self._group.rank, digests)
        error = None if writer.error is None else to_json(failed(writer.error))
        replies = self._group.gather({"error": error, "shard": to_json(shard)})
        self._doubtful.add(head.step)
        outcome = self._agree(lambda: self._commit(writer.directory, replies, head))
        if isinstance(outcome, Committed):
            return outcome
        outcome = outcome or Failed("rank 0 gave no outcome", uncertain=True)
        if self._group.rank == 0 and not outcome.uncertain:
            discard(self._place(), writer.directory)
        self._tier = None
        return outcome

    def learn(self, reply: Json) -> Committed | Failed | None:
        """What rank 0's saver process has answered, on every rank. Raises as `commit`."""
        return self._known(from_reply(reply))

    def finish(self, last: Committed) -> None:
        """Append the done record and put its copy. Collective; raises as `commit`.

        The result of a run is durable, whatever the site says of its nodes.
        """

        def append() -> Committed:
            if self._local is not None and last.seq is not None:
                self._assembler.make_durable(last.seq, self._local)
            self._assembler.finish(last)
            return last

        outcome = self._agree(append)
        if isinstance(outcome, Failed):
            raise StorageError(f"the run is complete but cannot be marked so: {outcome.message}")

    def salvage(self, step: int, files: Mapping[str, bytes]) -> None:
        """Store an adapter that is no checkpoint; its file is the first of `files`.

        Raises StorageError.
        """
        directory = layout.salvage_dir(self._places.attempt)
        for name, data in files.items():
            self._storage.put(f"{directory}/{name}", data)
        record = SalvageRecord(
            attempt=self._places.attempt,
            step=step,
            directory=directory,
            adapter_sha256=sha256(next(iter(files.values()))),
            time=iso(SystemClock().now()),
        )
        write_salvage(self._storage, record)

    def _commit(self, directory: str, replies: list[Json], head: Head) -> Committed | Failed:
        if faults := {
            i: from_json(Failed, r["error"]) for i, r in enumerate(replies) if r["error"]
        }:
            return together(faults)
        shards = [from_json(ShardManifest, r["shard"]) for r in replies]
        return self._assembler.commit(directory, shards, head, self._tier)

    def _agree(self, act: Callable[[], Committed | Failed | None]) -> Committed | Failed | None:
        """What `act` gives on rank 0, on every rank; refusals are raised on every rank."""
        return self._known(
            from_reply(self._group.share(as_reply(act) if self._group.rank == 0 else None))
        )

    def _known(self, outcome: Committed | Failed | None) -> Committed | Failed | None:
        if isinstance(outcome, Committed):
            self._doubtful.discard(outcome.step)
        return outcome
