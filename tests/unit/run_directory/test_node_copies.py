"""A remote checkpoint on this node: fetched by each node, verified, private, removed."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import CheckpointError, StorageError
from orchestrator.run_directory import private_folder
from orchestrator.run_directory.node_copies import NodeCopies
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from tests.unit.run_directory import fakes

_numbers = itertools.count()


class Remote:
    """A run with one checkpoint on a storage that is no file system, seen from one node."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.storage = MemoryStorage(f"memory://copying-{next(_numbers)}/run")
        self.log = RunLog(self.storage)
        self.record: LogRecord = fakes.commit(self.storage, self.log, 5)
        self.place = self.record.commit().directory

    def node(self, attempt: int = 2, slot: int = 0) -> NodeCopies:
        return NodeCopies(self.storage, "run-1", attempt, slot, str(self.scratch))

    def point(self, **changes: object) -> StartPoint:
        fields = {"kind": "checkpoint", "step": 5, "commit_seq": self.record.seq}
        return StartPoint(**{**fields, "directory": self.place, **changes})  # type: ignore[arg-type]

    def files(self) -> dict[str, bytes]:
        root = self.scratch / f"qvl-{os.getuid()}" / "run-1"
        found = [p for p in root.rglob("*") if p.is_file()]
        return {str(p.relative_to(root)): p.read_bytes() for p in found}


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


def test_the_copy_has_every_byte_and_is_private(remote: Remote) -> None:
    before = os.umask(0)
    try:
        local = remote.node().localize(remote.point(), remote.log).directory
    finally:
        os.umask(before)
    assert local is not None
    for name, data in fakes.contents(1, 5).items():
        assert (Path(local) / name).read_bytes() == data
    assert (Path(local) / "manifest.json").read_bytes() == remote.storage.get(
        f"{remote.place}/manifest.json"
    )
    for path in (remote.scratch / f"qvl-{os.getuid()}").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_each_node_fetches_for_itself(remote: Remote) -> None:
    first, second = remote.node(slot=0), remote.node(slot=1)
    places = {n.localize(remote.point(), remote.log).directory for n in (first, second)}
    assert len(places) == 2
    first.remove()
    assert {name.split("/")[0] for name in remote.files()} == {"000002-1"}
    second.remove()
    assert remote.files() == {}


def test_what_was_verified_is_not_fetched_again(remote: Remote) -> None:
    node = remote.node()
    node.verify(remote.record)
    remote.storage.delete(f"{remote.place}/{fakes.ADAPTER}")
    local = node.localize(remote.point(), remote.log).directory
    assert (Path(str(local)) / fakes.ADAPTER).is_file()


def test_copies_of_older_attempts_go(remote: Remote) -> None:
    for attempt in (2, 3):
        for slot in (0, 1):
            remote.node(attempt, slot).localize(remote.point(), remote.log)
    remote.node(4, 1).localize(remote.point(), remote.log)
    assert {name.split("/")[0] for name in remote.files()} == {"000003-0", "000004-1"}


def test_a_damaged_one_is_told_and_leaves_no_start(remote: Remote) -> None:
    name = f"{remote.place}/{fakes.ADAPTER}"
    remote.storage.put(name, remote.storage.get(name)[:-1] + b"?")
    with pytest.raises(CheckpointError, match="does not match its hash"):
        remote.node().localize(remote.point(), remote.log)


def test_weights_alone(remote: Remote) -> None:
    remote.storage.delete(f"{remote.place}/scheduler.pt")
    point = remote.node().localize(remote.point(kind="weights", commit_seq=None), remote.log)
    found = {p.name for p in Path(str(point.directory)).iterdir()}
    assert found == {fakes.ADAPTER, "adapter_config.json", "manifest.json"}
    name = f"{remote.place}/{fakes.ADAPTER}"
    remote.storage.put(name, b"other")
    with pytest.raises(CheckpointError, match="does not match its hash"):
        remote.node().localize(remote.point(kind="weights", commit_seq=None), remote.log)


def test_of_another_run_by_its_address(remote: Remote, tmp_path: Path) -> None:
    source = PosixStorage(tmp_path / "source")
    record = fakes.commit(source, RunLog(source), 5)
    other = NodeCopies(PosixStorage(tmp_path / "run"), "run-2", 1, 0, str(tmp_path))
    uri = f"file://{source.uri}/{record.commit().directory}"
    manifest = other.verify_elsewhere(uri)
    assert manifest.step == 5
    point = remote.point(directory=uri, commit_seq=None)
    local = Path(str(other.localize(point, remote.log).directory))
    assert (local / fakes.ADAPTER).is_file()
    other.remove()
    assert not local.exists()


def test_on_a_file_system_nothing_is_copied(tmp_path: Path) -> None:
    storage = PosixStorage(tmp_path / "run")
    record = fakes.commit(storage, RunLog(storage), 5)
    node = NodeCopies(storage, "run-1", 2, 0, str(tmp_path / "scratch"))
    node.verify(record)
    point = StartPoint(kind="checkpoint", directory=str(tmp_path / "run" / "x"), commit_seq=1)
    assert node.localize(point, RunLog(storage)) == point
    node.remove()
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, what: str) -> None:
    place = tmp_path / f"qvl-{os.getuid()}"
    if what == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    elif what == "a file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
    with pytest.raises(StorageError):
        private_folder.create(tmp_path, "run-1")


def test_no_room_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private_folder.os, "write", full)
    with pytest.raises(StorageError, match="No space left on device") as error:
        private_folder.write(tmp_path, "a/b", [b"1"])
    assert "TMPDIR" in str(error.value)
