"""From the files of all ranks to one committed checkpoint, and to the done record.

No tensors here: the fake trainer commits through the same code. Order: every rank's files
are durable, then its part manifest; all ranks compare notes; rank 0 writes the manifest and
appends the commit record; all ranks learn the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import Json, from_json, pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, PartManifest, Trigger
from orchestrator.contract.records import Done, LogRecord, encode_record
from orchestrator.contract.spec import Assignment
from orchestrator.errors import ContractRefused, LogDamaged, NotOwner, QvlError, StorageError
from orchestrator.storage import checkpoints
from orchestrator.storage.protocol import Sink, Storage
from orchestrator.storage.runlog import RunLog
from trainer.group import Group
from trainer.outcome import BaseChanged

_APPEND_TRIES = 4
_APPEND_PAUSE_S = 0.5


class PartWriter:
    """Files of one rank in one checkpoint.

    Nothing here raises: a rank that failed must still take part in the collectives. The
    first error is kept, and nothing more is written after it.
    """

    def __init__(self, storage: Storage, directory: str) -> None:
        self.directory = directory
        self.error: Exception | None = None
        self._storage = storage
        self._files: dict[str, FileEntry] = {}

    def write(self, path: str, produce: Callable[[Sink], object]) -> None:
        """Stream one file; `path` is relative to the checkpoint's directory."""
        with self.guard():
            if self.error is None:
                with self._storage.write_stream(f"{self.directory}/{path}") as sink:
                    produce(sink)
                self._files[path] = sink.entry(path)

    def put(self, path: str, data: bytes) -> None:
        """Write a small file."""
        self.write(path, lambda sink: sink.write(data))

    def guard(self) -> _Guard:
        """Context that keeps an error instead of raising it."""
        return _Guard(self)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(self._files[path] for path in sorted(self._files))


class _Guard:
    def __init__(self, writer: PartWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._writer.error = self._writer.error or fault
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a checkpoint says of itself beyond its files; known alike on every rank."""

    step: int
    epoch: int
    samples_seen: int
    trigger: Trigger
    learning_rate_hex: str
    pending_eval: bool
    adapter_digest: str = ""
    """Known on rank 0, like the next."""
    adapter_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Hashes of one rank's state, and of the base model where this rank computes them."""

    state: str
    rng: str
    base: str | None = None
    """At the start of the attempt."""
    base_again: str | None = None
    """After its first evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A step that stands in the log (or in the checkpoint that was resumed from)."""

    step: int
    seq: int | None
    """Number of the commit record; None if it stands in no log at hand."""
    adapter_sha256: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A save that did not become a checkpoint; the last committed one still counts."""

    message: str


class Committer:
    """Turns the parts of all ranks into a checkpoint of this attempt."""

    def __init__(
        self,
        storage: Storage,
        group: Group,
        assignment: Assignment,
        *,
        recorded_base: str | None = None,
        base_facts: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._group = group
        self._job = assignment
        self._clock = clock or SystemClock()
        self._log = RunLog(storage, self._clock)
        self._recorded_base = recorded_base
        self._base_facts = dict(base_facts or {})
        self._tokens: dict[int, str] = {}
        """Tokens of commits whose reply was lost, by step."""

    def begin(self, step: int) -> PartWriter:
        """A writer for this rank's files of `step`."""
        return PartWriter(self._storage, layout.checkpoint_dir(self._job.attempt, step))

    def settled(self, step: int) -> Committed | Failed | None:
        """The commit of `step` whose reply was lost, if it stands after all.

        Must be asked before the files of that step would be written again.
        """
        if step not in self._tokens:
            return None
        return self._agree(lambda: self._find(step))

    def commit(self, writer: PartWriter, digests: Digests, head: Head) -> Committed | Failed:
        """Commit what all ranks wrote. Collective.

        Raises on every rank NotOwner, LogDamaged, BaseChanged or ContractRefused; every other
        failure is returned.
        """
        parts = self._group.gather(self._finish_part(writer, digests))
        outcome = self._agree(lambda: self._commit_parts(writer, parts, head))
        return Failed("rank 0 gave no outcome") if outcome is None else outcome

    def finish(self, last: Committed) -> None:
        """Append the done record and put its copy. Collective; raises as `commit`."""

        def append() -> Committed:
            body = Done(
                commit_seq=last.seq or 0, step=last.step, adapter_sha256=last.adapter_sha256
            )
            token = f"{self._job.attempt}-done"
            record = self._retry(
                lambda: self._log.append("done", self._job.attempt, to_json(body), token=token)
            )
            self._storage.put(layout.DONE, encode_record(record))
            return last

        outcome = self._agree(append)
        if isinstance(outcome, Failed):
            raise StorageError(f"the run is complete but cannot be marked so: {outcome.message}")

    def _finish_part(self, writer: PartWriter, digests: Digests) -> Json:
        """Make the part manifest durable; what the other ranks are told."""
        part = PartManifest(
            rank=self._group.rank,
            files=writer.files,
            state_digest=digests.state,
            rng_digest=digests.rng,
        )
        with writer.guard():
            if writer.error is None:
                path = f"{writer.directory}/{layout.part(self._group.rank)}"
                self._storage.put(path, pretty(to_json(part)))
        return {
            "error": None if writer.error is None else _describe(writer.error),
            "part": to_json(part),
            "base": digests.base,
            "base_again": digests.base_again,
        }

    def _commit_parts(
        self, writer: PartWriter, replies: list[Json], head: Head
    ) -> Committed | Failed:
        base = self._check_base(replies)
        faults = [f"rank {i}: {r['error']}" for i, r in enumerate(replies) if r["error"]]
        if faults:
            return Failed("; ".join(faults))
        manifest = self._manifest([from_json(PartManifest, r["part"]) for r in replies], head, base)
        digest = checkpoints.write_manifest(self._storage, writer.directory, manifest)
        token = self._tokens[head.step] = f"{self._job.attempt}-{head.step}-{digest}"
        record = self._retry(
            lambda: checkpoints.commit(
                self._log, self._job.attempt, manifest, writer.directory, digest, token=token
            )
        )
        return Committed(
            step=head.step,
            seq=record.seq,
            adapter_sha256=head.adapter_sha256,
            size_bytes=manifest.total_bytes,
        )

    def _manifest(
        self, parts: list[PartManifest], head: Head, base: str | None
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
            files=tuple(f for part in parts for f in part.files),
            learning_rate_hex=head.learning_rate_hex,
            adapter_digest=head.adapter_digest,
            adapter_sha256=head.adapter_sha256,
            rank_digests=tuple(p.state_digest for p in parts),
            rng_digests=tuple(p.rng_digest for p in parts),
            pending_eval=head.pending_eval,
            facts=facts,
        )

    def _check_base(self, replies: list[Json]) -> str | None:
        """The base model's digest, equal on all nodes, at both times and to the recorded one."""
        known = [r["base"] for r in replies if r["base"]]
        base: str | None = known[0] if known else None
        for reply in replies:
            again = reply["base_again"]
            if again and again != reply["base"]:
                raise BaseChanged(
                    f"the frozen base model changed while evaluating: its digest was "
                    f"{reply['base']} and is {again}",
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

    def _find(self, step: int) -> Committed | None:
        for record in self._log.read().records:
            if record.token == self._tokens[step]:
                body = record.commit()
                return Committed(
                    step=step,
                    seq=record.seq,
                    adapter_sha256=body.adapter_sha256,
                    size_bytes=body.size_bytes,
                )
        return None

    def _retry(self, append: Callable[[], LogRecord]) -> LogRecord:
        """Try an append again while the storage fails; its token makes that safe."""
        for _ in range(_APPEND_TRIES - 1):
            try:
                return append()
            except StorageError:
                self._clock.sleep(_APPEND_PAUSE_S)
        return append()

    def _agree(self, act: Callable[[], Committed | Failed | None]) -> Committed | Failed | None:
        """What `act` gives on rank 0, on every rank; refusals are raised on every rank."""
        reply = self._group.share(_reply(act) if self._group.rank == 0 else None)
        if reply["kind"] in _RAISED:
            raise _RAISED[reply["kind"]](reply["message"], hint=reply["hint"])
        if reply["kind"] == "failed":
            return Failed(reply["message"])
        if reply["kind"] == "none":
            return None
        committed = from_json(Committed, reply["committed"])
        self._tokens.pop(committed.step, None)
        return committed


_RAISED = {cls.__name__: cls for cls in (NotOwner, LogDamaged, BaseChanged, ContractRefused)}


def _reply(act: Callable[[], Committed | Failed | None]) -> Json:
    try:
        outcome = act()
    except tuple(_RAISED.values()) as fault:
        return {"kind": type(fault).__name__, "message": fault.message, "hint": fault.hint}
    except Exception as fault:  # noqa: BLE001 - the other ranks wait for an answer
        return {"kind": "failed", "message": _describe(fault)}
    if outcome is None:
        return {"kind": "none"}
    if isinstance(outcome, Failed):
        return {"kind": "failed", "message": outcome.message}
    return {"kind": "committed", "committed": to_json(outcome)}


def _describe(fault: Exception) -> str:
    return str(fault) if isinstance(fault, QvlError) else f"{type(fault).__name__}: {fault}"
