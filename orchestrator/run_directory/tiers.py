"""Copies of a run's checkpoints on this node's own disk, beside the durable storage.

Same names, same bytes, same manifest: what a commit record says of one holds for the other.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contract import layout
from orchestrator.contract.manifest import FileEntry
from orchestrator.contract.records import LogRecord
from orchestrator.contract.resolved import CheckpointSpec
from orchestrator.errors import CheckpointError
from orchestrator.run_directory import checkpoints, private_folder
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage


@dataclass(frozen=True, slots=True)
class LocalTier:
    """The local tier of one run on this node."""

    storage: PosixStorage
    node: str
    commits: bool
    """A copy here counts as committed: the site says that nodes survive."""

    def holds(self, record: LogRecord) -> bool:
        """This node has, or had, a copy of that checkpoint; its bytes are not looked at."""
        manifest = f"{record.commit().directory}/{layout.MANIFEST}"
        found = self.storage.local_path(manifest)
        return found is not None and found.is_file()

    def drop_all_but(self, directories: set[str]) -> None:
        """Remove the copies of all other checkpoints."""
        files = self.storage.list(layout.ATTEMPTS, deep=True)
        for name in {"/".join(f.path.split("/")[:4]) for f in files} - directories:
            checkpoints.remove_files(self.storage, name)


def local_tier(spec: CheckpointSpec, run_id: str) -> LocalTier | None:
    """The tier that the job asks for, on this node. Raises StorageError if it cannot be made."""
    if spec.local_dir is None:
        return None
    root = private_folder.create(Path(spec.local_dir), run_id)
    return LocalTier(PosixStorage(root), socket.gethostname(), spec.survives == "process")


def upload(tier: LocalTier, durable: Storage, record: LogRecord) -> int:
    """Copy a checkpoint from this node to the durable storage, its manifest last.

    Returns the bytes copied. May be repeated. Raises CheckpointError if the copy here is not
    what was committed, StorageError if the durable storage fails.
    """
    body = record.commit()
    manifest = checkpoints.read_manifest(tier.storage, body.directory, body.manifest_hash)
    for entry in manifest.files:
        _copy(tier.storage, durable, f"{body.directory}/{entry.path}", entry)
    for part in tier.storage.list(f"{body.directory}/{layout.SHARDS}"):
        durable.put(part.path, tier.storage.get(part.path))
    name = f"{body.directory}/{layout.MANIFEST}"
    durable.put(name, tier.storage.get(name))
    return manifest.total_bytes


def _copy(source: Storage, target: Storage, name: str, entry: FileEntry) -> None:
    with target.write_stream(name) as sink:
        for chunk in source.read(name):
            sink.write(chunk)
    if sink.entry(entry.path) != entry:
        raise CheckpointError(f"{name} on this node does not match its hash")
