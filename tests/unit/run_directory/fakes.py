"""Small checkpoints and runs, written through the real functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.contract import layout
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, ShardManifest
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import LogRecord
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Storage, Taken

ADAPTER = "adapter_model.safetensors"
PLAN = BatchPlan(micro=4, accumulation=3, world_size=2)


def entry(path: str = "a", size_bytes: int = 1, digit: str = "0") -> FileEntry:
    return FileEntry(path=path, size_bytes=size_bytes, hash=f"blake3:{digit * 64}")


def manifest(**changes: Any) -> CheckpointManifest:
    """A manifest that names nothing yet; `changes` replaces fields."""
    blank = CheckpointManifest(
        run_id="run",
        attempt=1,
        step=1,
        epoch=0,
        samples_seen=24,
        nodes=1,
        gpus_per_node=2,
        zero_stage=2,
        plan=PLAN,
        trigger="interval",
        created_at="2026-01-01T00:00:00.000Z",
        files=(),
        learning_rate_hex=(1e-3).hex(),
        adapter_digest="d",
        adapter_sha256="s",
        rank_digests=("0", "1"),
        rng_digests=("0", "1"),
        pending_eval=False,
    )
    return replace(blank, **changes)


def contents(attempt: int, step: int, ranks: int = 2) -> dict[str, bytes]:
    """Files as a small checkpoint has them, different at every step."""
    mark = f"{attempt}/{step}".encode()
    files = {
        ADAPTER: b"adapter " + mark * 9,
        "adapter_config.json": b'{"r": 8}' + mark,
        "trainer_state.json": b'{"global_step": ' + mark + b"}",
        "latest": b"global_step" + mark,
        "scheduler.pt": mark * 3,
    }
    for rank in range(ranks):
        files[f"global_step{step}/zero_{rank}_optim_states.pt"] = bytes([rank]) * 40 + mark
        files[f"rng_state_{rank}.pth"] = bytes([rank]) + mark
    return files


def write(
    storage: Storage,
    step: int,
    *,
    attempt: int = 1,
    ranks: int = 2,
    facts: Mapping[str, Any] | None = None,
    trigger: str = "interval",
    **changes: Any,
) -> tuple[str, CheckpointManifest, str]:
    """Files, parts and manifest; not committed. Directory, manifest and its hash."""
    directory = layout.checkpoint_dir(attempt, step)
    found, entries = contents(attempt, step, ranks), []
    for path, data in found.items():
        with storage.write_stream(f"{directory}/{path}") as sink:
            sink.write(data)
        entries.append(sink.entry(path))
    for rank in range(ranks):
        part = ShardManifest(
            rank=rank, files=tuple(entries[rank::ranks]), state_digest="s", rng_digest="r"
        )
        storage.put(f"{directory}/{layout.shard(rank)}", pretty(to_json(part)))
    whole = manifest(
        attempt=attempt,
        step=step,
        files=tuple(entries),
        facts=dict(facts or {}),
        adapter_sha256=sha256(found[ADAPTER]),
        trigger=trigger,
        **changes,
    )
    return directory, whole, checkpoints.write_manifest(storage, directory, whole)


def commit(storage: Storage, log: RunLog, step: int, *, attempt: int = 1, **more: Any) -> LogRecord:
    """A whole committed checkpoint."""
    directory, whole, digest = write(storage, step, attempt=attempt, **more)
    return checkpoints.commit(log, attempt, whole, directory, digest)


def snapshot(storage: Storage) -> dict[str, bytes]:
    """Every object and its bytes."""
    return {e.path: storage.get(e.path) for e in storage.list("", deep=True)}


class LostReply(MemoryStorage):
    """The next `lose` creates work, but their caller gets an error."""

    lose = 0

    def create(self, path: str, data: bytes) -> Created | Taken:
        from orchestrator.errors import StorageError

        outcome = super().create(path, data)
        if self.lose:
            self.lose -= 1
            raise StorageError("the reply was lost")
        return outcome
