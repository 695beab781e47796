"""Snapshots of a quantized base, kept beside the runs: stored once, verified at every use.

Below `<checkpoint.uri>/.base-cache-<uid>/`, on file systems only:

    <key>/manifest.json    created once, when the files are durable; names them and their folder
    <key>/used.json        when a run last took it
    <key>/<token>/...      config.json and safetensors files, as transformers reads them

The key says what the tensors are a function of. A snapshot that no run has taken for
KEEP_DAYS is removed by the next run that stores one; everything here may be deleted by hand.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso, parse_iso
from orchestrator.contract.jsonio import (
    MalformedJson,
    canonical,
    digest,
    from_json,
    loads,
    to_json,
    unseal,
)
from orchestrator.contract.manifest import FileEntry, check_files
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import CheckpointError, QvlError, StorageError
from orchestrator.run_directory import records
from orchestrator.storage.hashing import ContentHash
from orchestrator.storage.opening import child, is_remote, open_storage
from orchestrator.storage.protocol import Created, NotFound, Sink, Storage

KEEP_DAYS = 30
FORMAT = 1
"""Grows when an older trainer would store other tensors under the same key."""
_PACKAGES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotManifest:
    """What makes a folder a snapshot."""

    key: str
    folder: str
    """Below the key."""
    files: tuple[FileEntry, ...]
    base_digest: str
    """Of the base it was made from, as modeling.base_digest gives it."""
    made_by: str
    """Run that stored it."""
    made_at: str
    schema: int = 1

    @property
    def total_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


Produce = Callable[[Sink], object]
"""Writes one file."""


def key_of(job: ResolvedJob, facts: Mapping[str, Any], device: str) -> str | None:
    """Name of the base that this attempt needs; None where none is kept.

    facts: of the resume contract; they hold the digest of the model's files and all versions
    device: type of device that quantizes
    """
    model = {n: v for n, v in facts.items() if n in ("model.digest", "model.id", "model.revision")}
    wanted = job.model.snapshot == "auto" and bool(job.quantization.get("load_in_4bit"))
    if not wanted or not any(model.values()) or job.zero_stage == 3:
        return None
    versions = {name: facts.get(f"version.{name}") for name in _PACKAGES}
    settings = to_json(dict(job.quantization))
    return digest([FORMAT, model, settings, versions, device])


class SnapshotCache:
    """The snapshot of one key. Errors are StorageError and CheckpointError.

    storage: rooted at the folder of all snapshots
    """

    def __init__(self, storage: Storage, key: str, *, clock: Clock | None = None) -> None:
        self._storage = storage
        self._key = key
        self._clock = clock or SystemClock()

    def find(self) -> SnapshotManifest | None:
        """What stands under the key. Raises CheckpointError if that cannot be believed."""
        path = f"{self._key}/manifest.json"
        try:
            found = from_json(SnapshotManifest, unseal(self._storage.get(path)))
            check_files(found.files)
        except NotFound:
            return None
        except MalformedJson as fault:
            raise CheckpointError(f"{path}: {fault}") from None
        if found.key != self._key or not found.folder.isalnum():
            raise CheckpointError(f"{path} is of another snapshot")
        return found

    def check(self, found: SnapshotManifest, part: int, parts: int) -> None:
        """Read and hash every `parts`-th file, from `part` on. Raises CheckpointError."""
        for entry in found.files[part::parts]:
            content = ContentHash()
            try:
                for chunk in self._storage.read(self._name(found.folder, entry.path)):
                    content.update(chunk)
            except NotFound:
                raise CheckpointError(f"{entry.path} is missing") from None
            if content.entry(entry.path) != entry:
                raise CheckpointError(f"{entry.path} is not what was stored")

    def place(self, found: SnapshotManifest) -> Path:
        """Local folder of its files, to be loaded from."""
        path = self._storage.local_path(f"{self._key}/{found.folder}")
        assert path is not None, "snapshots are kept on file systems only"
        return path

    def touch(self) -> None:
        """Say that a run takes the snapshot."""
        stamp = {"time": iso(self._clock.now())}
        self._storage.put(f"{self._key}/used.json", canonical(stamp))

    def store(
        self, files: Iterable[tuple[str, Produce]], base_digest: str, made_by: str
    ) -> SnapshotManifest | None:
        """Write the files and publish them; None if another run was faster.

        A snapshot that stands and cannot be believed is replaced. What fails leaves nothing.
        """
        folder = secrets.token_hex(8)
        try:
            manifest = self._write_all(folder, files, base_digest, made_by)
            published = self._publish(manifest)
        except NotFound:
            published = False  # a faster run takes away what it finds beside its own
        except BaseException:
            self._remove(f"{self._key}/{folder}/")
            raise
        if not published:
            self._remove(f"{self._key}/{folder}/")
            return None
        self._tidy(manifest)
        return manifest

    def discard(self) -> None:
        """Take away what cannot be believed, the manifest first."""
        self._storage.delete(f"{self._key}/manifest.json")
        self._remove(f"{self._key}/")

    def _publish(self, manifest: SnapshotManifest) -> bool:
        path = f"{self._key}/manifest.json"
        return isinstance(self._storage.create(path, records.encode(manifest)), Created)

    def _write_all(
        self, folder: str, files: Iterable[tuple[str, Produce]], base_digest: str, made_by: str
    ) -> SnapshotManifest:
        entries = tuple(self._write(folder, name, produce) for name, produce in files)
        self.touch()
        return SnapshotManifest(
            key=self._key,
            folder=folder,
            files=entries,
            base_digest=base_digest,
            made_by=made_by,
            made_at=iso(self._clock.now()),
        )

    def _write(self, folder: str, name: str, produce: Produce) -> FileEntry:
        with self._storage.write_stream(self._name(folder, name)) as sink:
            produce(sink)
        return sink.entry(name)

    def _name(self, folder: str, name: str) -> str:
        return f"{self._key}/{folder}/{name}"

    def _remove(self, prefix: str) -> None:
        for entry in self._storage.list(prefix, deep=True):
            self._storage.delete(entry.path)

    def _tidy(self, ours: SnapshotManifest) -> None:
        """Remove what writers that died left under our key, and snapshots long unused."""
        for entry in self._storage.list(f"{self._key}/", deep=True):
            folder = entry.path.split("/")[1]
            if folder not in ("manifest.json", "used.json", ours.folder):
                self._storage.delete(entry.path)
        keys = {entry.path.split("/")[0] for entry in self._storage.list("", deep=True)}
        for key in keys - {self._key}:
            if self._unused_days(key) > KEEP_DAYS:
                self._storage.delete(f"{key}/manifest.json")
                self._remove(f"{key}/")

    def _unused_days(self, key: str) -> float:
        try:
            stamp = parse_iso(loads(self._storage.get(f"{key}/used.json"))["time"])
        except (NotFound, MalformedJson, KeyError, TypeError, ValueError):
            return 0.0
        return (self._clock.now() - stamp) / 86400


def open_cache(job: ResolvedJob, facts: Mapping[str, Any], device: str) -> SnapshotCache | None:
    """The cache for this attempt's base; None where none is kept or it cannot be opened."""
    key = key_of(job, facts, device)
    if key is None or is_remote(job.checkpoint.uri):
        return None
    try:
        root = child(job.checkpoint.uri, f".base-cache-{os.getuid()}")
        return SnapshotCache(open_storage(root, group_sharing=False), key)
    except QvlError:
        return None


def look(cache: SnapshotCache, part: int, parts: int) -> tuple[SnapshotManifest | None, str | None]:
    """The snapshot with this rank's share of it verified, and what is wrong with it."""
    found = None
    try:
        found = cache.find()
        if found is not None:
            cache.check(found, part, parts)
    except (CheckpointError, StorageError) as fault:
        return found, fault.message
    return found, None
