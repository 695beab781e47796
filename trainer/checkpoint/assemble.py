"""From the shards of all ranks to one committed checkpoint, and to the done record.

The work of rank 0 alone, in its own process or in its saver's: the manifest is written when
every shard is durable, and the commit record after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import Json, from_json, to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, ShardManifest
from orchestrator.contract.records import Done, LogRecord, encode_record
from orchestrator.contract.spec import Assignment
from orchestrator.errors import ContractRefused, LogDamaged, NotOwner, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.tiers import LocalTier, upload
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.protocol import Storage
from trainer.checkpoint.compact import excess
from trainer.checkpoint.shards import Committed, Failed, Head, failed, shard_bytes
from trainer.process.outcome import BaseChanged

_APPEND_TRIES = 4
_APPEND_PAUSE_S = 0.5


class Assembler:
    """Commits what the ranks of one attempt have written."""

    def __init__(
        self,
        storage: Storage,
        assignment: Assignment,
        *,
        recorded_base: str | None = None,
        base_facts: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._job = assignment
        self._clock = clock or SystemClock()
        self._log = RunLog(storage, self._clock)
        self._recorded_base = recorded_base
        self._base_facts = dict(base_facts or {})

    def commit(
        self,
        directory: str,
        shards: Sequence[ShardManifest],
        head: Head,
        tier: LocalTier | None = None,
    ) -> Committed | Failed:
        """Write the manifest beside the files and append the commit record.

        tier: where the files are, if not in the durable storage

        Raises NotOwner, LogDamaged, BaseChanged and ContractRefused.
        """
        base = self._check_base(shards)
        manifest = self._manifest(shards, head, base)
        place = self._storage if tier is None else tier.storage
        node = None if tier is None else tier.node
        try:
            digest = checkpoints.write_manifest(place, directory, manifest)
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
                    node=node,
                )
            )
        except StorageError as fault:
            return failed(fault, uncertain=not self._surely_absent(token))
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

    def _surely_absent(self, token: str) -> bool:
        """No record with that token stands, nor will one that is still on its way."""
        if self._storage.local_path(layout.LOG) is None:
            return False
        try:
            return all(r.token != token for r in self._log.read().records)
        except StorageError:
            return False

    def make_durable(self, seq: int, tier: LocalTier) -> None:
        """Upload what a commit left in the local tier, unless it is in the storage already."""
        record = next(r for r in self._log.read().records if r.seq == seq)
        body = record.commit()
        if body.tier == "local" and not checkpoints.is_there(self._storage, body.directory):
            upload(tier, self._storage, record)

    def finish(self, last: Committed) -> None:
        """Append the done record and put its copy."""
        body = Done(commit_seq=last.seq or 0, step=last.step, adapter_sha256=last.adapter_sha256)
        token = f"{self._job.attempt}-done"
        record = self._retry(
            lambda: self._log.append("done", self._job.attempt, to_json(body), token=token)
        )
        self._storage.put(layout.DONE, encode_record(record))

    def _manifest(
        self, shards: Sequence[ShardManifest], head: Head, base: str | None
    ) -> CheckpointManifest:
        job = self._job.job
        facts = {**self._job.facts, **self._base_facts}
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
        if base and self._recorded_base and base != self._recorded_base:
            raise ContractRefused(
                f"the base model differs: its digest is {base}, the checkpoint was made with "
                f"{self._recorded_base}",
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


_RAISED = {cls.__name__: cls for cls in (NotOwner, LogDamaged, BaseChanged, ContractRefused)}


def as_reply(act: Callable[[], Committed | Failed | None]) -> Json:
    """What `act` gives or raises, as a message to other ranks or processes."""
    try:
        outcome = act()
    except tuple(_RAISED.values()) as fault:
        return {"kind": type(fault).__name__, "message": fault.message, "hint": fault.hint}
    except Exception as fault:  # noqa: BLE001 - others wait for an answer
        outcome = failed(fault, uncertain=True)
    if outcome is None:
        return {"kind": "none"}
    if isinstance(outcome, Failed):
        return {"kind": "failed", "failed": to_json(outcome)}
    return {"kind": "committed", "committed": to_json(outcome)}


def from_reply(reply: Json) -> Committed | Failed | None:
    """The outcome behind `as_reply`. Raises what must end the attempt."""
    if reply["kind"] in _RAISED:
        raise _RAISED[reply["kind"]](reply["message"], hint=reply["hint"])
    if reply["kind"] == "failed":
        return from_json(Failed, reply["failed"])
    if reply["kind"] == "none":
        return None
    return from_json(Committed, reply["committed"])


def _shard_file(shard: ShardManifest) -> FileEntry:
    """The shard manifest is a file of the checkpoint too."""
    data = shard_bytes(shard)
    return FileEntry(path=layout.shard(shard.rank), size_bytes=len(data), hash=hash_bytes(data))


def _committed(record: LogRecord) -> Committed:
    body = record.commit()
    return Committed(
        step=body.step,
        seq=record.seq,
        adapter_sha256=body.adapter_sha256,
        size_bytes=body.size_bytes,
    )
