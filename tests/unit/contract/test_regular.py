"""A FIFO, a device or a folder behind a name from outside is an error at once, everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.config.reading.site import load_site
from orchestrator.contract.regular import open_regular, read_regular
from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import CheckpointError, JobFileError, StorageError, UserError
from orchestrator.run_directory.checkpoints import verify_directory
from orchestrator.run_directory.node_copies import check_adapter
from orchestrator.run_directory.resume_facts import data_facts, file_sha256
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import NotFound
from trainer.commands.data_check import index
from trainer.vision_language.media import MediaError, open_picture, picture_facts

pytestmark = pytest.mark.timeout(20)


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def link_to_zero(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/zero")
    return path


Maker = Callable[[Path], Path]
KINDS = pytest.mark.parametrize("make", [fifo, link_to_zero])


def test_a_regular_file_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"content")
    (tmp_path / "link").symlink_to("there")
    assert read_regular(tmp_path / "link") == b"content"
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@KINDS
def test_everything_else_is_an_error_at_once(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no regular file"):
        read_regular(make(tmp_path / "x"))


@KINDS
def test_in_a_run_directory(make: Maker, tmp_path: Path) -> None:
    make(tmp_path / "resolved.json")
    storage = PosixStorage(tmp_path)
    with pytest.raises(NotFound, match="no regular file"):
        storage.get("resolved.json")
    with pytest.raises(NotFound, match="no regular file"):
        list(storage.read("resolved.json"))
    with pytest.raises(StorageError, match="no regular file"):
        storage.create("resolved.json", b"{}")


@KINDS
def test_behind_from(make: Maker, tmp_path: Path) -> None:
    make(tmp_path / "checkpoint-5/manifest.json")
    with pytest.raises(CheckpointError, match="manifest.json is missing"):
        verify_directory(PosixStorage(tmp_path), "checkpoint-5")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/adapter_model.safetensors").write_bytes(b"x")
    check_adapter(tmp_path / "weights")
    make(tmp_path / "weights/adapter_config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        check_adapter(tmp_path / "weights")


@KINDS
def test_as_a_job_site_or_index_file(make: Maker, tmp_path: Path) -> None:
    path = make(tmp_path / "x")
    with pytest.raises(JobFileError, match="no regular file"):
        load_job(path)
    with pytest.raises(UserError):
        load_site(path)
    with pytest.raises(UserError, match="no regular file"):
        data_facts(DataSpec(train=str(path)))
    with pytest.raises(OSError, match="no regular file"):
        file_sha256(path)
    assert [f.kind for f in index.read(path).findings] == ["unreadable-index"]


@KINDS
def test_as_a_picture(make: Maker, tmp_path: Path) -> None:
    path = make(tmp_path / "x.png")
    for look in (open_picture, picture_facts):
        with pytest.raises((MediaError, OSError), match="no regular file"):
            look(path)
