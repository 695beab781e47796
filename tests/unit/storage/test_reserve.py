"""Room kept for small records: made, given up, made again; never in the way, never relied upon."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.errors import StorageError
from orchestrator.storage import posix
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Created, HasReserve
from orchestrator.storage.reserve import BYTES, INODES, try_writing

VITAL = [
    layout.log_record(3),
    layout.claim(1),
    layout.verdict(1, 0),
    layout.stop(1, 0, 1),
    layout.segment(layout.attempt_events(1, "node-0"), 1),
    layout.segment(layout.run_events("controller"), 1),
    layout.lease(1),
    layout.submission(2),
    layout.SUMMARY,
    layout.TOMBSTONE,
    layout.DONE,
]
BULK = [
    f"{layout.checkpoint_dir(1, 20)}/manifest.json",
    layout.segment(layout.metrics(1, 0), 1),
    layout.segment(layout.logs(1, "rank-0"), 1, ".log"),
    layout.BASE_CACHE,
]


@pytest.fixture
def storage(tmp_path: Path) -> PosixStorage:
    (tmp_path / "run").mkdir()
    return PosixStorage(tmp_path / "run")


def held(storage: PosixStorage) -> int:
    folder = Path(storage.uri) / layout.RESERVE
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def full_while_reserved(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nothing new finds room but what the reserve has given up."""
    real = posix._open_new

    def open_new(path: Path, mode: int) -> Any:
        if held(storage):
            raise OSError(number, os.strerror(number))
        return real(path, mode)

    monkeypatch.setattr(posix, "_open_new", open_new)


def test_it_takes_blocks_and_inodes_and_is_made_again(storage: PosixStorage) -> None:
    assert isinstance(storage, HasReserve)
    assert storage.make_reserve()
    folder = Path(storage.uri) / layout.RESERVE
    assert sum(p.stat().st_blocks for p in folder.iterdir()) * 512 >= BYTES
    assert held(storage) == INODES + 1
    assert (folder.stat().st_mode & 0o777, (folder / "0").stat().st_mode & 0o777) == (0o700, 0o600)
    (folder / "7").unlink()
    assert storage.make_reserve()
    assert held(storage) == INODES + 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("path", VITAL)
def test_small_records_get_its_room(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch, number: int, path: str
) -> None:
    storage.make_reserve()
    full_while_reserved(storage, monkeypatch, number)
    assert storage.create(path, b"1") == Created()
    assert storage.get(path) == b"1"
    assert held(storage) == 0


@pytest.mark.parametrize("path", BULK)
def test_what_is_large_or_can_wait_does_not(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    storage.make_reserve()
    full_while_reserved(storage, monkeypatch, errno.ENOSPC)
    with pytest.raises(StorageError, match="No space left"):
        storage.put(path, b"1")
    assert held(storage) == INODES + 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_another_fault_leaves_it_alone(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    storage.make_reserve()
    full_while_reserved(storage, monkeypatch, number)
    with pytest.raises(StorageError):
        storage.put(layout.SUMMARY, b"1")
    assert held(storage) == INODES + 1


def test_without_it_the_fault_is_told(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix, "_open_new", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match="full"):
        storage.put(layout.SUMMARY, b"1")


def test_it_is_not_made_of_the_last_room(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def scarce(path: Any) -> os.statvfs_result:
        found = list(real(path))
        found[4] = (2 * BYTES) // found[1]  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", scarce)
    assert not storage.make_reserve()
    assert held(storage) == 0


def test_a_run_directory_that_is_gone_gets_none(tmp_path: Path) -> None:
    assert not PosixStorage(tmp_path / "none").make_reserve()
    assert not (tmp_path / "none").exists()


def test_a_try_leaves_nothing(storage: PosixStorage) -> None:
    try_writing(storage, 3 * BYTES)
    assert [p for p in Path(storage.uri).rglob("*") if p.is_file()] == []
    memory = MemoryStorage("memory://try")
    try_writing(memory, 10**15)
    assert memory.list("", deep=True) == []


def test_a_try_asks_for_as_much_as_is_needed(storage: PosixStorage) -> None:
    free = os.statvfs(storage.uri)
    with pytest.raises(StorageError, match="No space left"):
        try_writing(storage, free.f_blocks * free.f_frsize + 1)
    assert [p for p in Path(storage.uri).rglob("*") if p.is_file()] == []


def test_a_try_that_cannot_succeed_takes_no_room_from_others(
    storage: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, size: taken.append(size))
    free = os.statvfs(storage.uri)
    with pytest.raises(StorageError):
        try_writing(storage, free.f_blocks * free.f_frsize + 1)
    assert taken == []
    try_writing(storage, BYTES)
    assert taken == [BYTES]
