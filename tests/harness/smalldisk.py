"""A file system of its own for a test, in memory and of a chosen size, and what fills it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MB = 1 << 20


@dataclass
class SmallDisk:
    """Called with bytes and inodes it is mounted, or made that large."""

    folder: Path
    mounted: bool = False

    def __call__(self, size: int, inodes: int = 0) -> Path:
        options = f"size={size},nr_inodes={inodes},mode=700"
        how = f"remount,{options}" if self.mounted else options
        argv = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(self.folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode and not self.mounted:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        self.mounted = True
        return self.folder


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Unmounted at the end."""
    folder.mkdir()
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        if disk.mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Filler:
    """Takes all blocks, or all inodes, until `free`. greedy: and whatever becomes free meanwhile"""

    def __init__(self, root: Path, *, inodes: bool = False, greedy: bool = False) -> None:
        self._greedy = greedy
        self._folder = root / "filler"
        self._folder.mkdir()
        self._inodes = inodes
        self._ends = threading.Event()
        self._full = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        assert self._full.wait(30.0)

    def free(self) -> None:
        self._ends.set()
        self._thread.join()
        shutil.rmtree(self._folder)

    def _work(self) -> None:
        number = 0
        while not self._ends.wait(0.001 if self._full.is_set() else 0.0):
            try:
                fd = os.open(self._folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                number += self._inodes
                try:
                    os.write(fd, b"" if self._inodes else bytes(4096))
                finally:
                    os.close(fd)
            except FileNotFoundError:
                return  # the file system has gone
            except OSError as fault:
                assert fault.errno == errno.ENOSPC
                self._full.set()
                if not self._greedy:
                    return
