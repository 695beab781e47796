"""The copy of a remote checkpoint on this node that its ranks load from.

A start point that nodes share names a place in the run's storage (or a URI); each node
fetches it for itself, verifying every byte on the way.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.contract import layout
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import CheckpointError
from orchestrator.run_directory import checkpoints, private_folder
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import NotFound, Storage

ADAPTER = "adapter_model.safetensors"
_BESIDE = ("adapter_config.json", layout.MANIFEST)


class NodeCopies:
    """Copies of one attempt on one node; those of its predecessors are removed."""

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        attempt: int,
        slot: int,
        scratch_dir: str | None = None,
    ) -> None:
        self._storage = storage
        self._base = None if scratch_dir is None else Path(scratch_dir)
        self.run_id = run_id
        self._attempt = attempt
        self._own = f"{attempt:06d}-{slot}"
        self._slot = slot
        self._fetched: dict[str, Path] = {}

    def verify(self, record: LogRecord) -> checkpoints.Verified:
        """As checkpoints.verify, keeping what was read if the storage is remote."""
        place = record.commit().directory
        if self._storage.local_path(place) is not None:
            return checkpoints.verify(self._storage, record)
        folder = self._empty(place)
        verified = checkpoints.verify(self._storage, record, copy_to=folder)
        self._fetched[place] = folder
        return verified

    def verify_elsewhere(self, uri: str) -> CheckpointManifest:
        """A checkpoint of some other remote run, by the URI of its directory."""
        root, name = _split(uri)
        folder = self._empty(uri)
        manifest = checkpoints.verify_directory(root, name, copy_to=folder)
        self._fetched[uri] = folder
        return manifest

    def check_weights(self, directory: str, adapter_sha256: str) -> None:
        """Raise CheckpointError unless the adapter in `directory` is what was committed."""
        if self._storage.local_path(directory) is None:
            self.fetch_weights(directory, adapter_sha256)
        else:
            _adapter(self._storage, directory, adapter_sha256)

    def fetch_weights(self, place: str, adapter_sha256: str | None) -> None:
        """The adapter at `place` and what describes it, to this node.

        adapter_sha256: what the adapter must be; None where no log says so

        Raises CheckpointError.
        """
        storage, name = _split(place) if "://" in place else (self._storage, place)
        adapter = _adapter(storage, name, adapter_sha256)
        folder = self._empty(place)
        private_folder.write(folder, ADAPTER, [adapter])
        for beside in _BESIDE:
            with suppress(NotFound):
                private_folder.write(folder, beside, [storage.get(f"{name}/{beside}")])
        self._fetched[place] = folder

    def localize(self, point: StartPoint, log: RunLog) -> StartPoint:
        """The same start with its files on this node. Raises CheckpointError, StorageError."""
        place = point.directory
        if place is None or place.startswith("/"):
            return point
        if place not in self._fetched:
            self._fetch(point, place, log)
        return replace(point, directory=str(self._fetched[place]))

    def remove(self) -> None:
        """At the end of the attempt."""
        if self._storage.local_path(layout.RESOLVED) is None or self._fetched:
            private_folder.remove(self._folder() / self._own)

    def _fetch(self, point: StartPoint, place: str, log: RunLog) -> None:
        commits = [r for r in log.read().records if r.kind == "commit"]
        if point.kind == "weights":
            known = [r.commit() for r in commits if r.commit().directory == place]
            self.fetch_weights(place, known[-1].adapter_sha256 if known else None)
        elif point.commit_seq is None:
            self.verify_elsewhere(place)
        else:
            self.verify(next(r for r in commits if r.seq == point.commit_seq))

    def _folder(self) -> Path:
        return private_folder.create(self._base, self.run_id)

    def _empty(self, place: str) -> Path:
        """A new folder; what this node holds for older attempts of the slot goes."""
        folder = self._folder()
        for other in folder.iterdir():
            attempt, _, slot = other.name.partition("-")
            if slot == str(self._slot) and int(attempt) < self._attempt:
                private_folder.remove(other)
        private_folder.remove(folder / self._own)
        name = place.rstrip("/").rpartition("/")[2]
        return private_folder.create(self._base, self.run_id, self._own, name)


def check_adapter(folder: Path) -> None:
    """Raise CheckpointError unless an adapter can be read from that folder."""
    if not (folder / ADAPTER).is_file():
        raise CheckpointError(f"{folder / ADAPTER} is missing, or no regular file")
    for beside in _BESIDE:
        if (folder / beside).exists() and not (folder / beside).is_file():
            raise CheckpointError(f"{folder / beside} is no regular file")


def _split(uri: str) -> tuple[Storage, str]:
    root, _, name = uri.rstrip("/").rpartition("/")
    return open_storage(root), name


def _adapter(storage: Storage, directory: str, adapter_sha256: str | None) -> bytes:
    try:
        adapter = storage.get(f"{directory}/{ADAPTER}")
    except NotFound:
        raise CheckpointError(f"{directory}/{ADAPTER} is missing") from None
    if adapter_sha256 is not None and sha256(adapter) != adapter_sha256:
        raise CheckpointError(f"{directory}/{ADAPTER} does not match its hash")
    return adapter
