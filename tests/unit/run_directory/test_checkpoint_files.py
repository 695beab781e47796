"""Writing, verifying and giving up checkpoints."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout, regular
from orchestrator.contract.jsonio import MalformedJson, digest, loads, pretty, to_json
from orchestrator.contract.manifest import decode_manifest
from orchestrator.contract.records import LogRecord
from orchestrator.errors import CheckpointError, NewerVersion, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage import posix as posix_module
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage
from tests.unit.run_directory import fakes

DIRECTORY = layout.checkpoint_dir(1, 10)
FILES = sorted(fakes.contents(1, 10))


@pytest.fixture(params=["memory", "posix"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


@pytest.fixture
def log(storage: Storage) -> RunLog:
    log = RunLog(storage)
    log.append("fence", 1)
    return log


@pytest.fixture
def record(storage: Storage, log: RunLog) -> LogRecord:
    return fakes.commit(storage, log, 10)


def bad(storage: Storage, record: LogRecord, text: str) -> None:
    with pytest.raises(CheckpointError, match=text) as caught:
        checkpoints.verify(storage, record)
    assert DIRECTORY in caught.value.message
    assert caught.value.exit_code == 73


def test_what_was_committed_verifies(storage: Storage, record: LogRecord) -> None:
    seen: list[str] = []
    verified = checkpoints.verify(storage, record, on_file=lambda e: seen.append(e.path))
    assert sorted(seen) == FILES
    assert verified.commit.size_bytes == verified.manifest.total_bytes
    assert verified.manifest.total_bytes == sum(map(len, fakes.contents(1, 10).values()))
    assert verified.record == record


@pytest.mark.parametrize("name", FILES)
def test_a_bit_flip_anywhere_in_any_file(storage: Storage, record: LogRecord, name: str) -> None:
    path = f"{DIRECTORY}/{name}"
    good = storage.get(path)
    for position in {0, len(good) - 1, *range(0, len(good), 7)}:
        flipped = bytearray(good)
        flipped[position] ^= 1 << (position % 8)
        storage.put(path, bytes(flipped))
        bad(storage, record, f"{name} does not match its hash")
    storage.put(path, good)
    checkpoints.verify(storage, record)


@pytest.mark.parametrize("name", FILES)
def test_a_truncation_of_any_file(storage: Storage, record: LogRecord, name: str) -> None:
    path = f"{DIRECTORY}/{name}"
    good = storage.get(path)
    for length in (0, 1, len(good) // 2, len(good) - 1):
        storage.put(path, good[:length])
        bad(storage, record, f"{name} has {length} bytes instead of {len(good)}")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(storage: Storage, record: LogRecord, name: str) -> None:
    storage.delete(f"{DIRECTORY}/{name}")
    bad(storage, record, f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_extra_bytes(storage: Storage, record: LogRecord, name: str) -> None:
    path = f"{DIRECTORY}/{name}"
    good = storage.get(path)
    storage.put(path, good + b"\0")
    bad(storage, record, f"{name} has more than {len(good)} bytes")


def test_two_files_swapped(storage: Storage, record: LogRecord) -> None:
    names = [f"{DIRECTORY}/global_step10/zero_{r}_optim_states.pt" for r in (0, 1)]
    one, two = map(storage.get, names)
    assert len(one) == len(two)
    storage.put(names[0], two)
    storage.put(names[1], one)
    bad(storage, record, "zero_0_optim_states.pt does not match its hash")


def test_files_of_two_steps_mixed(storage: Storage, log: RunLog, record: LogRecord) -> None:
    fakes.commit(storage, log, 20)
    other = storage.get(f"{layout.checkpoint_dir(1, 20)}/scheduler.pt")
    storage.put(f"{DIRECTORY}/scheduler.pt", other)
    bad(storage, record, "scheduler.pt does not match its hash")


def test_the_manifest_flipped_truncated_or_gone(storage: Storage, record: LogRecord) -> None:
    path = f"{DIRECTORY}/{layout.MANIFEST}"
    good = storage.get(path)
    for position in range(0, len(good), 11):
        flipped = bytearray(good)
        flipped[position] ^= 4
        storage.put(path, bytes(flipped))
        bad(storage, record, "manifest.json differs from what was committed")
    storage.put(path, good[:-1])
    bad(storage, record, "manifest.json differs from what was committed")
    storage.put(path, b"")
    bad(storage, record, "manifest.json differs from what was committed")
    storage.delete(path)
    bad(storage, record, "manifest.json is missing")


def test_the_manifest_of_another_step(storage: Storage, log: RunLog, record: LogRecord) -> None:
    fakes.commit(storage, log, 20)
    other = storage.get(f"{layout.checkpoint_dir(1, 20)}/{layout.MANIFEST}")
    storage.put(f"{DIRECTORY}/{layout.MANIFEST}", other)
    bad(storage, record, "manifest.json differs from what was committed")


def test_a_commit_that_names_the_manifest_of_another_step(storage: Storage, log: RunLog) -> None:
    directory, manifest, digest = fakes.write(storage, 10)
    record = checkpoints.commit(log, 1, replace(manifest, step=11), directory, digest)
    bad(storage, record, "manifest is of step 10, attempt 1; the commit says 11, 1")


def test_a_commit_that_names_the_manifest_of_another_attempt(storage: Storage, log: RunLog) -> None:
    directory, manifest, digest = fakes.write(storage, 10)
    log.append("fence", 2)
    record = checkpoints.commit(log, 2, manifest, directory, digest)
    bad(storage, record, "manifest is of step 10, attempt 1; the commit says 10, 2")


def test_the_whole_directory_gone(storage: Storage, record: LogRecord) -> None:
    checkpoints.remove_files(storage, DIRECTORY)
    bad(storage, record, "manifest.json is missing")


def test_a_folder_in_the_place_of_a_file(posix: PosixStorage, tmp_path: Path) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    posix.delete(f"{DIRECTORY}/latest")
    posix.put(f"{DIRECTORY}/latest/x", b"")
    bad(posix, record, "latest is missing")
    posix.delete(f"{DIRECTORY}/latest/x")
    checkpoints.remove_files(posix, DIRECTORY)
    posix.put(DIRECTORY, b"a file")
    bad(posix, record, "manifest.json is missing")


def test_a_link_to_an_endless_file_ends(posix: PosixStorage, tmp_path: Path) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    path = tmp_path / "run" / DIRECTORY / "latest"
    path.unlink()
    path.symlink_to("/dev/zero")
    bad(posix, record, "latest is missing")


def test_a_dangling_link(posix: PosixStorage, tmp_path: Path) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    path = tmp_path / "run" / DIRECTORY / "latest"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    bad(posix, record, "latest is missing")


def test_reading_stops_where_the_claimed_size_ends() -> None:
    """No allocation and no work by what somebody else put there."""
    read = 0

    class Endless(MemoryStorage):
        def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
            nonlocal read
            while True:
                read += 1
                yield memoryview(b"\0" * 1000)

    storage = Endless("memory://endless")
    record = fakes.commit(storage, RunLog(storage), 10)
    bad(storage, record, "has more than")
    assert read < 20
    MemoryStorage._spaces.pop("memory://endless")


def test_a_checkpoint_given_by_path(storage: Storage, record: LogRecord) -> None:
    assert checkpoints.verify_directory(storage, DIRECTORY).step == 10
    storage.put(f"{DIRECTORY}/latest", b"?")
    with pytest.raises(CheckpointError, match="latest has 1 bytes instead of"):
        checkpoints.verify_directory(storage, DIRECTORY)


# --- manifests that were never ours


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "parent": lambda m: m["files"][0].update(path="../../../etc/passwd"),
    "inner parent": lambda m: m["files"][0].update(path="a/../../b"),
    "absolute": lambda m: m["files"][0].update(path="/etc/passwd"),
    "dot": lambda m: m["files"][0].update(path="./a"),
    "empty": lambda m: m["files"][0].update(path=""),
    "double slash": lambda m: m["files"][0].update(path="a//b"),
    "newline at the end": lambda m: m["files"][0].update(path="latest\n"),
    "nul": lambda m: m["files"][0].update(path="a\0b"),
    "blank": lambda m: m["files"][0].update(path="a b"),
    "backslash": lambda m: m["files"][0].update(path="..\\a"),
    "twice": lambda m: m["files"].append(dict(m["files"][0])),
    "size negative": lambda m: m["files"][0].update(size_bytes=-1),
    "size absurd": lambda m: m["files"][0].update(size_bytes=1 << 60),
    "size beyond integers": lambda m: m["files"][0].update(size_bytes=10**300),
    "size a text": lambda m: m["files"][0].update(size_bytes="1"),
    "size a bool": lambda m: m["files"][0].update(size_bytes=True),
    "size a float": lambda m: m["files"][0].update(size_bytes=1.0),
    "hash short": lambda m: m["files"][0].update(hash="blake3:00"),
    "hash of another kind": lambda m: m["files"][0].update(hash="md5:" + "0" * 64),
    "hash with a newline": lambda m: m["files"][0].update(hash="blake3:" + "0" * 64 + "\n"),
    "files no list": lambda m: m.update(files={"a": 1}),
    "files of texts": lambda m: m.update(files=["a"]),
    "no files": lambda m: m.pop("files"),
    "plan a list": lambda m: m.update(plan=[1, 2, 3]),
    "step a text": lambda m: m.update(step="10"),
    "trigger unknown": lambda m: m.update(trigger="whim"),
    "digests nested": lambda m: m.update(rank_digests=[["a"]]),
    "facts a list": lambda m: m.update(facts=[]),
}


def _summed(value: dict[str, Any]) -> bytes:
    """Whoever means harm makes the checksum right."""
    body = {k: v for k, v in value.items() if k != "sum"}
    return pretty(body | {"sum": digest(body)})


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_hostile_manifests_are_refused(storage: Storage, how: str) -> None:
    fakes.write(storage, 10)
    path = f"{DIRECTORY}/{layout.MANIFEST}"
    value = loads(storage.get(path))
    HOSTILE[how](value)
    data = _summed(value)
    storage.put(path, data)
    for expected in (None, hash_bytes(data)):
        with pytest.raises(CheckpointError, match="manifest.json: (?!does not match)"):
            checkpoints.read_manifest(storage, DIRECTORY, expected)
    with pytest.raises(CheckpointError, match="manifest.json: "):
        checkpoints.verify_directory(storage, DIRECTORY)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[" * 9999, b"\xff", b"{}", b"1" * 9999])
def test_a_manifest_that_is_no_document(storage: Storage, data: bytes) -> None:
    storage.put(f"{DIRECTORY}/{layout.MANIFEST}", data)
    with pytest.raises(CheckpointError, match="manifest.json: "):
        checkpoints.verify_directory(storage, DIRECTORY)


def test_we_never_write_such_a_manifest(storage: Storage) -> None:
    with pytest.raises(MalformedJson, match="unsafe path"):
        checkpoints.write_manifest(storage, "d", fakes.manifest(files=(fakes.entry("../a"),)))
    assert storage.list("", deep=True) == []


def test_a_manifest_with_too_many_files(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.contract.manifest.MAX_FILES", 3)
    files = tuple(fakes.entry(f"f{n}") for n in range(4))
    with pytest.raises(MalformedJson, match="absurd size or number of files"):
        checkpoints.write_manifest(storage, "d", fakes.manifest(files=files))


# --- giving up


def test_live_commits(storage: Storage, log: RunLog) -> None:
    records = [fakes.commit(storage, log, step) for step in (10, 20, 30)]
    checkpoints.mark_bad(log, 1, records[1], "flipped")
    checkpoints.retire(storage, log, 1, records[0], "keep_last")
    assert [r.seq for r in checkpoints.live_commits(log.read())] == [records[2].seq]


def test_retire_writes_its_record_first_and_then_removes_the_files(
    storage: Storage, log: RunLog, record: LogRecord
) -> None:
    before = len(fakes.snapshot(storage))
    written = checkpoints.retire(storage, log, 1, record, "keep_last")
    assert written.retire().commit_seq == record.seq
    assert len(fakes.snapshot(storage)) == before + 1 - len(FILES) - 3
    assert storage.list(f"{DIRECTORY}/", deep=True) == []


def test_a_retire_that_is_cut_off_has_its_record(memory: MemoryStorage) -> None:
    class Cut(MemoryStorage):
        def delete(self, path: str) -> None:
            raise KeyboardInterrupt

    log = RunLog(memory)
    record = fakes.commit(memory, log, 10)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.retire(Cut(memory.uri), log, 1, record, "keep_last")
    assert checkpoints.live_commits(RunLog(memory).read()) == []
    checkpoints.remove_files(memory, DIRECTORY)
    checkpoints.remove_files(memory, DIRECTORY)
    assert [e.path for e in memory.list("", deep=True)] == [
        "log/00000001.json",
        "log/00000002.json",
    ]


def test_marking_bad_keeps_the_files(storage: Storage, log: RunLog, record: LogRecord) -> None:
    before = fakes.snapshot(storage)
    written = checkpoints.mark_bad(log, 1, record, "flipped")
    assert (written.kind, written.retire().reason) == ("bad", "flipped")
    assert before.items() < fakes.snapshot(storage).items()


def test_to_json_and_back(storage: Storage, record: LogRecord) -> None:
    manifest = checkpoints.verify(storage, record).manifest
    stored = loads(storage.get(f"{DIRECTORY}/{layout.MANIFEST}"))
    assert stored == to_json(manifest) | {"sum": digest(to_json(manifest))}


def test_every_single_bit_of_a_manifest_without_a_log(posix: PosixStorage) -> None:
    """What `--from /elsewhere/checkpoint-10` has to go by."""
    fakes.write(posix, 10)
    path = f"{DIRECTORY}/{layout.MANIFEST}"
    good = posix.get(path)
    for position in range(len(good)):
        for bit in range(8):
            flipped = bytearray(good)
            flipped[position] ^= 1 << bit
            try:
                decode_manifest(bytes(flipped))
            except MalformedJson:
                continue
            assert _only_blanks(good, bytes(flipped)), (position, bit)


def _only_blanks(one: bytes, other: bytes) -> bool:
    """Nothing but the layout of the document differs."""
    return bool(loads(one) == loads(other)) and one.split() == other.split()


def test_a_manifest_of_a_newer_version_is_refused_and_not_called_damaged(
    storage: Storage, record: LogRecord
) -> None:
    path = f"{DIRECTORY}/{layout.MANIFEST}"
    value = loads(storage.get(path)) | {"schema": 2}
    storage.put(path, _summed(value))
    digest_ = hash_bytes(_summed(value))
    newer = replace(record, body={**record.body, "manifest_hash": digest_})
    text = f"{path} was made by a newer version of qvl-orchestrate .schema 2 of CheckpointManifest"
    with pytest.raises(NewerVersion, match=text) as caught:
        checkpoints.verify(storage, newer)
    assert caught.value.hint == "use the version of qvl-orchestrate that wrote it"
    with pytest.raises(NewerVersion):
        checkpoints.verify_directory(storage, DIRECTORY)


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG, errno.EUCLEAN])
@pytest.mark.parametrize("name", ["scheduler.pt", layout.MANIFEST])
def test_a_file_that_the_disk_gives_no_more(
    posix: PosixStorage, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    _fail_reads(monkeypatch, name, number, times=99)
    reason = os.strerror(number)
    bad(posix, record, f"{name} cannot be read undamaged .{reason}")


def test_a_read_that_fails_once_is_repeated(
    posix: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    _fail_reads(monkeypatch, "scheduler.pt", errno.EIO, times=1)
    checkpoints.verify(posix, record)


def test_a_storage_that_is_away_is_no_damage(
    posix: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fakes.commit(posix, RunLog(posix), 10)
    _fail_reads(monkeypatch, "scheduler.pt", errno.ESTALE, times=99)
    with pytest.raises(StorageError, match="scheduler.pt: Stale file handle"):
        checkpoints.verify(posix, record)


def _fail_reads(patch: pytest.MonkeyPatch, name: str, number: int, times: int) -> None:
    real, left = regular.open_regular, [times]

    def failing(path: Path, *args: Any, **more: Any) -> Any:
        if path.name == name and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(path, *args, **more)

    patch.setattr(regular, "open_regular", failing)
    patch.setattr(posix_module, "open_regular", failing)
