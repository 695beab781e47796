"""Checkpoints in a run directory: manifest, verification, marking bad, giving up.

Files first, manifest next, commit record last; removal only after a retire record stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from orchestrator.contract import layout
from orchestrator.contract.jsonio import MalformedJson, from_json, loads, pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, check_files
from orchestrator.contract.records import Commit, LogRecord, Retire
from orchestrator.errors import CheckpointError
from orchestrator.storage.hashing import ContentHash, hash_bytes
from orchestrator.storage.protocol import NotFound, Storage
from orchestrator.storage.runlog import LogView, RunLog


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint whose every byte was read and found right."""

    record: LogRecord
    commit: Commit
    manifest: CheckpointManifest


def live_commits(view: LogView) -> list[LogRecord]:
    """Commit records neither retired nor bad, oldest first."""
    gone = {r.retire().commit_seq for r in view.records if r.kind in ("retire", "bad")}
    return [r for r in view.records if r.kind == "commit" and r.seq not in gone]


def write_manifest(storage: Storage, directory: str, manifest: CheckpointManifest) -> str:
    """Store the manifest durably; returns the hash that the commit record must carry."""
    check_files(manifest.files)
    data = pretty(to_json(manifest))
    storage.put(f"{directory}/{layout.MANIFEST}", data)
    return hash_bytes(data)


def read_manifest(
    storage: Storage, directory: str, manifest_hash: str | None
) -> CheckpointManifest:
    """The manifest, compared with the hash of its commit record unless that is None.

    Raises CheckpointError saying what is wrong with it.
    """
    name = f"{directory}/{layout.MANIFEST}"
    try:
        data = storage.get(name)
    except NotFound:
        raise CheckpointError(f"{name} is missing") from None
    if manifest_hash is not None and hash_bytes(data) != manifest_hash:
        raise CheckpointError(f"{name} differs from what was committed")
    try:
        manifest = from_json(CheckpointManifest, loads(data))
        check_files(manifest.files)
    except MalformedJson as fault:
        raise CheckpointError(f"{name}: {fault}") from None
    return manifest


def verify(
    storage: Storage,
    record: LogRecord,
    *,
    threads: int = 4,
    on_file: Callable[[FileEntry], None] | None = None,
) -> Verified:
    """Read and hash every file that a commit names. Raises CheckpointError naming the fault."""
    commit = record.commit()
    manifest = read_manifest(storage, commit.directory, commit.manifest_hash)
    if (manifest.step, manifest.attempt) != (commit.step, record.attempt):
        raise CheckpointError(
            f"{commit.directory}: manifest is of step {manifest.step}, attempt "
            f"{manifest.attempt}; the commit says {commit.step}, {record.attempt}"
        )
    _verify_files(storage, commit.directory, manifest.files, threads, on_file)
    return Verified(record, commit, manifest)


def verify_directory(storage: Storage, directory: str) -> CheckpointManifest:
    """Verify a checkpoint that no log at hand names (given by path): manifest against files."""
    manifest = read_manifest(storage, directory, None)
    _verify_files(storage, directory, manifest.files, 4, None)
    return manifest


def _verify_files(
    storage: Storage,
    directory: str,
    files: Iterable[FileEntry],
    threads: int,
    on_file: Callable[[FileEntry], None] | None,
) -> None:
    def check(entry: FileEntry) -> None:
        _verify_file(storage, directory, entry)
        if on_file is not None:
            on_file(entry)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(check, files):
            pass


def _verify_file(storage: Storage, directory: str, entry: FileEntry) -> None:
    name = f"{directory}/{entry.path}"
    try:
        found = _hash_up_to(storage.read(name), entry.size_bytes).entry(entry.path)
    except NotFound:
        raise CheckpointError(f"{name} is missing") from None
    if found.size_bytes > entry.size_bytes:
        raise CheckpointError(f"{name} has more than {entry.size_bytes} bytes")
    if found.size_bytes != entry.size_bytes:
        raise CheckpointError(f"{name} has {found.size_bytes} bytes instead of {entry.size_bytes}")
    if found.hash != entry.hash:
        raise CheckpointError(f"{name} does not match its hash")


def _hash_up_to(chunks: Iterable[memoryview], size_bytes: int) -> ContentHash:
    """Reads no further than the first chunk past `size_bytes`."""
    content = ContentHash()
    for chunk in chunks:
        content.update(chunk)
        if content.size_bytes > size_bytes:
            break
    return content


def commit(
    log: RunLog,
    attempt: int,
    manifest: CheckpointManifest,
    directory: str,
    manifest_hash: str,
    *,
    token: str | None = None,
) -> LogRecord:
    """Append the commit record: from now on the checkpoint counts. Raises as RunLog.append."""
    body = Commit(
        directory=directory,
        step=manifest.step,
        manifest_hash=manifest_hash,
        trigger=manifest.trigger,
        size_bytes=manifest.total_bytes,
        adapter_sha256=manifest.adapter_sha256,
    )
    return log.append("commit", attempt, to_json(body), token=token)


def mark_bad(log: RunLog, attempt: int, record: LogRecord, reason: str) -> LogRecord:
    """Quarantine: the checkpoint is never chosen again; its files stay for a person."""
    body = Retire(commit_seq=record.seq, directory=record.commit().directory, reason=reason)
    return log.append("bad", attempt, to_json(body))


def retire(
    storage: Storage, log: RunLog, attempt: int, record: LogRecord, reason: str
) -> LogRecord:
    """Give a checkpoint up: the record first, then its files, the manifest before the rest."""
    body = Retire(commit_seq=record.seq, directory=record.commit().directory, reason=reason)
    written = log.append("retire", attempt, to_json(body))
    remove_files(storage, body.directory)
    return written


def remove_files(storage: Storage, directory: str) -> None:
    """Delete everything below a checkpoint's directory; may be repeated."""
    storage.delete(f"{directory}/{layout.MANIFEST}")
    for entry in storage.list(f"{directory}/", deep=True):
        storage.delete(entry.path)
