"""What a killed agent leaves on its node goes with the next agent's start, and nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.agent import scratch
from tests.harness.runs import ROOT

_LIVES = """
import sys, time
from orchestrator.agent import scratch
with scratch.folder(sys.argv[1]) as place:
    (place / "x").write_text("x")
    print(place, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def agent(base: Path, run_id: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LIVES, run_id],
        env={**os.environ, "TMPDIR": str(base), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def copies(base: Path, run_id: str) -> Path:
    folder = base / f"qvl-{os.getuid()}" / run_id
    (folder / "000001-0").mkdir(parents=True)
    (folder / "000001-0" / "adapter").write_text("x")
    return folder


def test_a_folder_is_private_and_goes_with_its_lock(base: Path) -> None:
    with scratch.folder("run-1") as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "inner").mkdir()
        scratch.collect()
        assert (place / "inner").exists(), "its own agent lives"
    assert list(base.iterdir()) == []


def test_what_a_killed_agent_left_is_collected_and_that_of_a_living_one_is_not(base: Path) -> None:
    killed, left = agent(base, "run-dead")
    lives, kept = agent(base, "run-alive")
    try:
        gone, stays = copies(base, "run-dead"), copies(base, "run-alive")
        (stays.parent / "run-dead" / "tensorboard").mkdir()
        end(killed)
        assert (left / "x").exists()
        scratch.collect()
        assert not left.exists()
        assert not left.with_suffix(".lock").exists()
        assert [p.name for p in gone.iterdir()] == ["tensorboard"], "that is a person's"
        assert (kept / "x").exists()
        assert (stays / "000001-0" / "adapter").exists()
    finally:
        end(lives)
    scratch.collect()
    assert not kept.exists()
    assert not stays.exists()


def test_folders_without_a_lock_and_links_are_left_alone(base: Path, tmp_path: Path) -> None:
    (base / "qvl-00000000").mkdir()
    target = tmp_path / "precious"
    target.mkdir()
    (base / "qvl-11111111").symlink_to(target)
    (base / "qvl-11111111.lock").write_text("run")
    (base / "qvl-22222222.lock").symlink_to(base / "precious")
    os.mkfifo(base / "qvl-33333333.lock")
    scratch.collect()
    assert (base / "qvl-00000000").exists()
    assert target.exists()
    assert (base / "qvl-22222222.lock").is_symlink()


def test_a_lock_of_another_namespace_counts(base: Path) -> None:
    """A lock says who lives; the number in a file would not."""
    (base / "qvl-44444444").mkdir()
    lock = base / "qvl-44444444.lock"
    lock.write_text("run")
    fd = os.open(lock, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    scratch.collect()
    assert (base / "qvl-44444444").exists()
    os.close(fd)
    scratch.collect()
    assert not (base / "qvl-44444444").exists()
