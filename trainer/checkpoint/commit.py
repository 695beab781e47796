"""From the shards of all ranks to one committed checkpoint, and to the done record.

The one way to a commit, for every save: the manifest is written when all shards are durable, and
the commit record after it. The work of rank 0 alone, in its own process while training waits, in
its saver process beside training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, ShardManifest
from orchestrator.contract.records import Done, LogRecord, SalvageRecord, encode_record
from orchestrator.contract.spec import Assignment
from orchestrator.errors import ContractRefused, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.attempts import write_salvage
from orchestrator.run_directory.records import encode_pretty
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.tiers import upload
from orchestrator.storage.hashing import hash_bytes, sha256
from trainer.checkpoint.save_result import Committed, Failed, Head, failed
from trainer.checkpoint.shards import Place, Tiers
from trainer.process.outcome import BaseChanged

_APPEND_TRIES = 4
_APPEND_PAUSE_S = 0.5

STATE_BYTES = 12
"""A trainable parameter: master copy and two moments, 32 bits each."""
COPIES = 2
"""Of the adapter in its own precision: one for PEFT, one for DeepSpeed."""
SIZE_MARGIN = 1.02
FIXED_BYTES = 256_000
"""Of files beside the tensors; and for each rank:"""
RANK_BYTES = 64_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """What is known of the base model when an attempt begins."""

    recorded: str | None = None
    """Its digest in the checkpoint that is resumed from; None = nothing to compare with."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Go into the manifest's `facts`."""


class Committer:
    """Commits what the ranks of one attempt have written."""

    def __init__(
        self,
        tiers: Tiers,
        assignment: Assignment,
        base: BaseFacts | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._tiers = tiers
        self._storage = tiers.durable
        self._job = assignment
        self._clock = clock or SystemClock()
        self._log = RunLog(self._storage, self._clock)
        self._base = base or BaseFacts()

    def commit(
        self, directory: str, shards: Sequence[ShardManifest], head: Head, place: Place
    ) -> Committed | Failed:
        """Write the manifest beside the files and append the commit record.

        place: where the files are

        Raises NotOwner, LogDamaged, BaseChanged and ContractRefused.
        """
        manifest = self._manifest(shards, head, self._check_base(shards))
        try:
            digest = checkpoints.write_manifest(place.storage, directory, manifest)
        except StorageError as fault:
            return failed(fault)
        token = f"{self._job.attempt}-{head.step}-{digest}"
        try:
            record = self._retry(
                lambda: checkpoints.commit(
                    self._log,
                    self._job.attempt,
                    manifest,
                    directory,
                    digest,
                    token=token,
                    node=place.node,
                )
            )
        except StorageError as fault:
            return failed(fault, uncertain=not self._surely_absent(token))
        if place.copy is not None:
            name = f"{directory}/{layout.MANIFEST}"
            with suppress(StorageError):
                place.copy.put(name, place.storage.get(name))
        oversize = excess(manifest.files, head.needed_bytes, len(shards))
        return replace(_committed(record), oversize=oversize)

    def find(self, step: int) -> Committed | None:
        """The commit of `step` by this attempt, if it stands: its reply may have been lost."""
        for record in reversed(self._log.read().records):
            if record.kind == "commit" and record.attempt == self._job.attempt:
                found = _committed(record)
                if found.step == step:
                    self._log.make_durable(record)
                    return found
        return None

    def finish(self, last: Committed) -> None:
        """Append the done record and put its copy.

        The result of a run is durable, whatever the site says of its nodes.
        """
        if last.seq is not None:
            self._make_durable(last.seq)
        body = Done(commit_seq=last.seq or 0, step=last.step, adapter_sha256=last.adapter_sha256)
        token = f"{self._job.attempt}-done"
        record = self._retry(
            lambda: self._log.append("done", self._job.attempt, to_json(body), token=token)
        )
        self._storage.put(layout.DONE, encode_record(record))

    def salvage(self, step: int, files: Mapping[str, bytes]) -> None:
        """Store an adapter that is no checkpoint; its file is the first of `files`.

        Raises StorageError.
        """
        directory = layout.salvage_dir(self._job.attempt)
        for name, data in files.items():
            self._storage.put(f"{directory}/{name}", data)
        record = SalvageRecord(
            attempt=self._job.attempt,
            step=step,
            directory=directory,
            adapter_sha256=sha256(next(iter(files.values()))),
            time=iso(self._clock.now()),
        )
        write_salvage(self._storage, record)

    def _surely_absent(self, token: str) -> bool:
        """No record with that token stands, nor will one that is still on its way.

        Doubt after a lost reply: a remote storage may carry out a `create` long after its
        connection broke. Only a file system forgets a call whose process has had its error.
        """
        if self._storage.local_path(layout.LOG) is None:
            return False
        try:
            return all(r.token != token for r in self._log.read().records)
        except StorageError:
            return False

    def _make_durable(self, seq: int) -> None:
        """Upload what a commit left in the local tier, unless it is in the storage already."""
        if self._tiers.local is None:
            return
        record = next(r for r in self._log.read().records if r.seq == seq)
        body = record.commit()
        if body.tier == "local" and not checkpoints.is_there(self._storage, body.directory):
            upload(self._tiers.local, self._storage, record)

    def _manifest(
        self, shards: Sequence[ShardManifest], head: Head, base: str | None
    ) -> CheckpointManifest:
        job = self._job.job
        facts = {**self._job.facts, **self._base.facts}
        if base is not None:
            facts["base_digest"] = base
        return CheckpointManifest(
            run_id=self._job.run_id,
            attempt=self._job.attempt,
            step=head.step,
            epoch=head.epoch,
            samples_seen=head.samples_seen,
            nodes=job.resources.nodes,
            gpus_per_node=job.resources.gpus_per_node,
            zero_stage=job.zero_stage,
            plan=self._job.plan,
            trigger=head.trigger,
            created_at=iso(self._clock.now()),
            files=tuple(f for shard in shards for f in (*shard.files, _shard_file(shard))),
            learning_rate_hex=head.learning_rate_hex,
            adapter_digest=head.adapter_digest,
            adapter_sha256=head.adapter_sha256,
            rank_digests=tuple(p.state_digest for p in shards),
            rng_digests=tuple(p.rng_digest for p in shards),
            pending_eval=head.pending_eval,
            facts=facts,
        )

    def _check_base(self, shards: Sequence[ShardManifest]) -> str | None:
        """The base model's digest, equal on all nodes, at both times and to the recorded one."""
        known = [p.base for p in shards if p.base]
        base = known[0] if known else None
        for shard in shards:
            if shard.base_again and shard.base_again != shard.base:
                raise BaseChanged(
                    f"the frozen base model changed while evaluating: its digest was "
                    f"{shard.base} and is {shard.base_again}",
                    hint="report this; the checkpoints before the evaluation are good",
                )
        if len(set(known)) > 1:
            raise ContractRefused(f"nodes loaded different base models: {', '.join(known)}")
        if base and self._base.recorded and base != self._base.recorded:
            raise ContractRefused(
                f"the base model differs: its digest is {base}, the checkpoint was made with "
                f"{self._base.recorded}",
                hint="restore the model's files, or start a new run",
            )
        return base

    def _retry(self, append: Callable[[], LogRecord]) -> LogRecord:
        """Try an append again while the storage fails; its token makes that safe."""
        for _ in range(_APPEND_TRIES - 1):
            try:
                return append()
            except StorageError:
                self._clock.sleep(_APPEND_PAUSE_S)
        return append()


def _shard_file(shard: ShardManifest) -> FileEntry:
    """The shard manifest is a file of the checkpoint too."""
    data = encode_pretty(shard)
    return FileEntry(path=layout.shard(shard.rank), size_bytes=len(data), hash=hash_bytes(data))


def _committed(record: LogRecord) -> Committed:
    body = record.commit()
    return Committed(
        step=body.step,
        seq=record.seq,
        adapter_sha256=body.adapter_sha256,
        size_bytes=body.size_bytes,
    )


def needed(tensors: Iterable[tuple[int, int]]) -> int:
    """Bytes of the state of these trainable tensors: (elements, bytes of one)."""
    return sum(count * (STATE_BYTES + COPIES * width) for count, width in tensors)


def excess(files: Sequence[FileEntry], needed_bytes: int, ranks: int) -> str:
    """A sentence if the files take more than they should; empty if they do not.

    needed_bytes: 0 = not known
    """
    total = sum(f.size_bytes for f in files)
    limit = int(SIZE_MARGIN * needed_bytes) + FIXED_BYTES + RANK_BYTES * ranks
    if not needed_bytes or total <= limit:
        return ""
    largest = sorted(files, key=lambda f: f.size_bytes, reverse=True)[:3]
    names = ", ".join(f"{f.path} {f.size_bytes}" for f in largest)
    return (
        f"the checkpoint takes {total} bytes, its trainable state needs {needed_bytes} and may "
        f"take {limit}; the largest files: {names}"
    )
