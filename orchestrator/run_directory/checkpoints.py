"""Checkpoints in a run directory: manifest, verification, marking bad, giving up.

Files first, manifest next, commit record last; removal only after a retire record stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contract import layout, pickles
from orchestrator.contract.jsonio import MalformedJson, NewerSchema, to_json
from orchestrator.contract.manifest import (
    CheckpointManifest,
    FileEntry,
    check_files,
    decode_manifest,
    encode_manifest,
)
from orchestrator.contract.records import Commit, LogRecord, Retire
from orchestrator.errors import CheckpointError, NewerVersion, StorageError
from orchestrator.run_directory import private_folder
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.storage.hashing import ContentHash, hash_bytes
from orchestrator.storage.protocol import Damaged, NotFound, Storage


class Unreadable(CheckpointError):
    """Bytes that do not arrive. It may pass: no reason to call the checkpoint bad for good."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint whose every byte was read and found right, and that a load accepts."""

    record: LogRecord
    commit: Commit
    manifest: CheckpointManifest


def live_commits(view: LogView) -> list[LogRecord]:
    """Commit records neither retired nor bad, oldest first.

    Within an attempt the step decides: a save beside training may reach the log after a
    newer one that has superseded it.
    """
    gone = {r.retire().commit_seq for r in view.records if r.kind in ("retire", "bad")}
    live = [r for r in view.records if r.kind == "commit" and r.seq not in gone]
    return sorted(live, key=lambda r: (r.attempt, r.commit().step, r.seq))


def write_manifest(storage: Storage, directory: str, manifest: CheckpointManifest) -> str:
    """Store the manifest durably; returns the hash that the commit record must carry."""
    check_files(manifest.files)
    data = encode_manifest(manifest)
    storage.put(f"{directory}/{layout.MANIFEST}", data)
    return hash_bytes(data)


def read_manifest(
    storage: Storage, directory: str, manifest_hash: str | None
) -> CheckpointManifest:
    """The manifest, compared with the hash of its commit record unless that is None.

    Raises CheckpointError saying what is wrong with it, NewerVersion for one beyond us.
    """
    return _manifest(storage, directory, manifest_hash)[0]


def _manifest(
    storage: Storage, directory: str, manifest_hash: str | None
) -> tuple[CheckpointManifest, bytes]:
    name = f"{directory}/{layout.MANIFEST}"
    try:
        data = storage.get(name)
    except NotFound:
        raise CheckpointError(f"{name} is missing") from None
    except Damaged as fault:
        raise _unreadable(name, fault) from None
    if manifest_hash is not None and hash_bytes(data) != manifest_hash:
        raise CheckpointError(f"{name} differs from what was committed")
    try:
        return decode_manifest(data), data
    except NewerSchema as fault:
        raise NewerVersion(f"{name} was {fault}") from None
    except MalformedJson as fault:
        raise CheckpointError(f"{name}: {fault}") from None


def is_there(storage: Storage, directory: str) -> bool:
    """The manifest, which is written last, stands; nothing is verified."""
    try:
        storage.get(f"{directory}/{layout.MANIFEST}")
    except NotFound:
        return False
    return True


def verify(
    storage: Storage,
    record: LogRecord,
    *,
    threads: int = 4,
    on_file: Callable[[FileEntry], None] | None = None,
    copy_to: Path | None = None,
) -> Verified:
    """Read and hash every file that a commit names. Raises CheckpointError naming the fault.

    copy_to: empty local folder that gets what was read; only good if nothing is raised
    """
    commit = record.commit()
    manifest, data = _manifest(storage, commit.directory, commit.manifest_hash)
    if (manifest.step, manifest.attempt) != (commit.step, record.attempt):
        raise CheckpointError(
            f"{commit.directory}: manifest is of step {manifest.step}, attempt "
            f"{manifest.attempt}; the commit says {commit.step}, {record.attempt}"
        )
    _verify_files(storage, commit.directory, manifest, threads, on_file, copy_to)
    if copy_to is not None:
        private_folder.write(copy_to, layout.MANIFEST, [data])
    return Verified(record, commit, manifest)


def verify_directory(
    storage: Storage, directory: str, *, copy_to: Path | None = None
) -> CheckpointManifest:
    """Verify a checkpoint that no log at hand names (given by path): manifest against files."""
    manifest, data = _manifest(storage, directory, None)
    _verify_files(storage, directory, manifest, 4, None, copy_to)
    if copy_to is not None:
        private_folder.write(copy_to, layout.MANIFEST, [data])
    return manifest


def extra_files(storage: Storage, directory: str, manifest: CheckpointManifest) -> list[str]:
    """Files in a checkpoint's directory that the manifest does not name; nothing reads them."""
    named = {f"{directory}/{name}" for name in (layout.MANIFEST, *(f.path for f in manifest.files))}
    return [
        entry.path.removeprefix(f"{directory}/")
        for entry in storage.list(f"{directory}/", deep=True)
        if entry.path not in named
    ]


def _verify_files(
    storage: Storage,
    directory: str,
    manifest: CheckpointManifest,
    threads: int,
    on_file: Callable[[FileEntry], None] | None,
    copy_to: Path | None,
) -> None:
    def check(entry: FileEntry) -> None:
        _verify_file(storage, directory, entry, copy_to)
        if on_file is not None:
            on_file(entry)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(check, manifest.files):
            pass


def _verify_file(storage: Storage, directory: str, entry: FileEntry, copy_to: Path | None) -> None:
    """What comes over a network, or cannot be read at all, gets a second try."""
    try:
        _verify_once(storage, directory, entry, copy_to)
        return
    except CheckpointError:
        if storage.local_path(directory) is not None:
            raise
    except Damaged:
        pass
    try:
        _verify_once(storage, directory, entry, copy_to)
    except Damaged as fault:
        raise _unreadable(f"{directory}/{entry.path}", fault) from None


def _verify_once(storage: Storage, directory: str, entry: FileEntry, copy_to: Path | None) -> None:
    name = f"{directory}/{entry.path}"
    content, head = ContentHash(), bytearray()
    chunks = _hashed_up_to(storage.read(name), entry.size_bytes, content)
    if pickles.is_tensor_file(entry.path):
        chunks = _keeping(chunks, head, pickles.HEAD_BYTES)
    try:
        if copy_to is None:
            for _ in chunks:
                pass
        else:
            private_folder.write(copy_to, entry.path, chunks)
    except NotFound:
        raise CheckpointError(f"{name} is missing") from None
    found = content.entry(entry.path)
    if found.size_bytes > entry.size_bytes:
        raise CheckpointError(f"{name} has more than {entry.size_bytes} bytes")
    if found.size_bytes != entry.size_bytes:
        raise CheckpointError(f"{name} has {found.size_bytes} bytes instead of {entry.size_bytes}")
    if found.hash != entry.hash:
        raise CheckpointError(f"{name} does not match its hash")
    if refused := pickles.refused(entry.path, bytes(head)):
        raise CheckpointError(f"{name} holds what no load accepts: {', '.join(refused)}")


def _unreadable(name: str, fault: Damaged) -> Unreadable:
    return Unreadable(f"{name} cannot be read undamaged ({fault.message.rpartition(': ')[2]})")


def _hashed_up_to(
    chunks: Iterable[memoryview], size_bytes: int, content: ContentHash
) -> Iterator[memoryview]:
    """Hashes on the way; ends with the first chunk past `size_bytes`."""
    for chunk in chunks:
        content.update(chunk)
        yield chunk
        if content.size_bytes > size_bytes:
            return


def _keeping(
    chunks: Iterable[memoryview], head: bytearray, size_bytes: int
) -> Iterator[memoryview]:
    """The same; the first `size_bytes` are kept in `head`."""
    for chunk in chunks:
        head += chunk[: max(0, size_bytes - len(head))]
        yield chunk


def commit(  # noqa: PLR0913
    log: RunLog,
    attempt: int,
    manifest: CheckpointManifest,
    directory: str,
    manifest_hash: str,
    *,
    token: str | None = None,
    node: str | None = None,
) -> LogRecord:
    """Append the commit record: from now on the checkpoint counts. Raises as RunLog.append.

    node: whose local tier has the files, if that is where they are
    """
    body = Commit(
        directory=directory,
        step=manifest.step,
        manifest_hash=manifest_hash,
        trigger=manifest.trigger,
        size_bytes=manifest.total_bytes,
        adapter_sha256=manifest.adapter_sha256,
        tier="durable" if node is None else "local",
        node=node,
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


def discard(storage: Storage, directory: str) -> None:
    """Free what a failed save has written; best effort: a later attempt looks for it again.

    Only for a directory of which it is certain that no commit record names it or ever will.
    """
    with suppress(StorageError):
        remove_files(storage, directory)


def leftovers(storage: Storage, view: LogView, below: int) -> dict[str, int]:
    """Directories of attempts before `below` that no commit names, and their bytes.

    A bad checkpoint is named: its files are a person's to look at.
    """
    retired = {r.retire().commit_seq for r in view.records if r.kind == "retire"}
    named = {
        r.commit().directory for r in view.records if r.kind == "commit" and r.seq not in retired
    }
    found: dict[str, int] = {}
    for attempt in range(1, below):
        for entry in storage.list(f"{layout.attempt_dir(attempt)}checkpoints/", deep=True):
            directory = "/".join(entry.path.split("/")[:4])
            if directory not in named:
                found[directory] = found.get(directory, 0) + entry.size_bytes
    return found


def remove_files(storage: Storage, directory: str) -> None:
    """Delete everything below a checkpoint's directory; may be repeated."""
    storage.delete(f"{directory}/{layout.MANIFEST}")
    for entry in storage.list(f"{directory}/", deep=True):
        storage.delete(entry.path)
