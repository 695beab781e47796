"""Bits, ends, files: whatever is changed in a run's log or in a checkpoint is noticed.

QVL_FAULTS=all: on the checkpoints of a real training, 10,000 flips and 1,000 clean loads;
else on files of real tensors, some hundreds of each.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import LogRecord
from orchestrator.errors import CheckpointError, LogDamaged
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.posix import PosixStorage
from tests.faults import real

ALL = os.environ.get("QVL_FAULTS") == "all"
FLIPS = 10_000 if ALL else 500
CLEAN = 1_000 if ALL else 50
CUTS = 40 if ALL else 6
"""Lengths to which each file is cut."""
pytestmark = pytest.mark.torch


@dataclass
class Kept:
    """A run directory that is damaged and mended again, many times."""

    root: Path

    def __post_init__(self) -> None:
        self.storage = PosixStorage(self.root)
        self.commits = checkpoints.live_commits(RunLog(self.storage).read())
        self.newest = self.commits[-1]
        folder = self.root / self.directory
        self.files = sorted(p for p in folder.rglob("*") if p.is_file())
        self.records = sorted((self.root / "log").iterdir())
        assert {layout.MANIFEST, "0.json", "1.json"} <= {p.name for p in self.files}
        assert len(self.records) > 2

    @property
    def directory(self) -> str:
        return self.newest.commit().directory

    def notices(self, path: Path) -> bool:
        """Whether reading the run tells that `path` is not what was written."""
        if path in self.records:
            return self._log_is_damaged()
        return self._is_damaged(self.newest)

    def _is_damaged(self, record: LogRecord) -> bool:
        try:
            checkpoints.verify(self.storage, record, threads=1)
        except CheckpointError as fault:
            assert self.directory in fault.message
            return True
        return False

    def _log_is_damaged(self) -> bool:
        if not RunLog(self.storage).read().unreadable:
            return False
        with pytest.raises(LogDamaged):
            RunLog(self.storage).append("fence", 99)
        return True


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("damage")
    fast = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else folder
    root = fast / f"qvl-damage-{os.getpid()}"
    if ALL:
        shutil.copytree(real.of_training(folder), root)
    else:
        made = folder / "run"
        real.of_tensors(made)
        shutil.copytree(made, root)
    yield Kept(root)
    shutil.rmtree(root)


@contextmanager
def replaced(path: Path, data: bytes | None) -> Iterator[None]:
    """For a while the file holds `data`; None: it is not there."""
    good = path.read_bytes()
    path.unlink() if data is None else path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(good)


def test_single_bits(kept: Kept) -> None:
    chance, missed = random.Random(11), []
    paths = [*kept.files, *kept.records]
    for number in range(FLIPS):
        path = paths[number % len(paths)]
        data = bytearray(path.read_bytes())
        bit = chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        with replaced(path, bytes(data)):
            if not kept.notices(path):
                missed.append((path.name, bit))
    assert missed == []


def test_ends(kept: Kept) -> None:
    missed, cuts = [], 0
    for path in [*kept.files, *kept.records]:
        good = path.read_bytes()
        lengths = {0, len(good) - 1, *range(0, len(good), max(1, len(good) // CUTS))}
        for length in lengths:
            cuts += 1
            with replaced(path, good[:length]):
                if not kept.notices(path):
                    missed.append((path.name, length))
        with replaced(path, good + b"\0"):
            if not kept.notices(path):
                missed.append((path.name, len(good) + 1))
    assert missed == []
    assert cuts > CUTS * 10


def test_missing_files(kept: Kept) -> None:
    # the newest record has nothing after it that tells of it; see the next test
    for path in [*kept.files, *kept.records[:-1]]:
        with replaced(path, None):
            assert kept.notices(path), path.name


def test_the_end_of_the_log_gone(kept: Kept) -> None:
    """An older state of the run: its newest checkpoint is whole, and of one whose `retire` has
    gone the missing files are noticed.
    """
    path = kept.records[-1]
    with replaced(path, None):
        view = RunLog(kept.storage).read()
        assert view.unreadable == ()
        assert len(view.records) == len(kept.records) - 1
        *older, newest = checkpoints.live_commits(view)
        checkpoints.verify(kept.storage, newest)
        for record in older:
            if not checkpoints.is_there(kept.storage, record.commit().directory):
                with pytest.raises(CheckpointError, match="is missing"):
                    checkpoints.verify(kept.storage, record)


def test_swapped_files(kept: Kept) -> None:
    swapped = 0
    for one, other in itertools.combinations(kept.files, 2):
        first, second = one.read_bytes(), other.read_bytes()
        if first == second:
            continue
        swapped += 1
        with replaced(one, second), replaced(other, first):
            assert kept.notices(one), (one.name, other.name)
    for one, other in itertools.combinations(kept.records, 2):
        with replaced(one, other.read_bytes()), replaced(other, one.read_bytes()):
            assert kept.notices(one), (one.name, other.name)
    assert swapped > 40


def test_files_of_another_checkpoint(kept: Kept) -> None:
    older = kept.root / kept.commits[-2].commit().directory
    compared = 0
    for path in kept.files:
        other = older / path.relative_to(kept.root / kept.directory)
        if other.is_file() and other.read_bytes() != path.read_bytes():
            compared += 1
            with replaced(path, other.read_bytes()):
                assert kept.notices(path), path.name
    assert compared > 3


@pytest.mark.parametrize("name", ["scaler.pt", "global_step99/x.pt", "adapter_model.bin"])
def test_extra_files_are_named_and_nothing_loads_them(kept: Kept, name: str) -> None:
    from trainer.checkpoint.restore import only_named

    path = kept.root / kept.directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not ours")
    try:
        manifest = checkpoints.verify(kept.storage, kept.newest).manifest
        assert checkpoints.extra_files(kept.storage, kept.directory, manifest) == [name]
        with only_named(str(kept.root / kept.directory), manifest) as folder:
            seen = {
                p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if not p.is_dir()
            }
            assert seen == {f.path for f in manifest.files}
            assert (Path(folder) / "latest").read_bytes()
    finally:
        path.unlink()


def test_no_false_alarm(kept: Kept) -> None:
    for _ in range(CLEAN):
        view = RunLog(kept.storage).read()
        assert view.unreadable == ()
        for record in checkpoints.live_commits(view):
            found = checkpoints.verify(kept.storage, record, threads=1)
            assert (
                checkpoints.extra_files(kept.storage, record.commit().directory, found.manifest)
                == []
            )
