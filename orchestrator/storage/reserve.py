"""A little room kept in a run directory for the time when its file system is full.

Blocks and inodes, given up when a small record finds no room (ENOSPC, EDQUOT), made again when
there is some. Best effort: others may take what was given up, and nothing may depend on it.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.contract import layout
from orchestrator.storage.protocol import HasReserve, Storage

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""How a file system says that it has no room: blocks, inodes, or this user's share of them."""
BYTES = 1 << 20
INODES = 32
SPARE = 4
"""Made only where there is so many times more room than it takes."""
_BLOCKS = "blocks"


class Reserve:
    """The reserve below `root`."""

    def __init__(self, root: Path, file_mode: int, dir_mode: int) -> None:
        self._root = root
        self._folder = root / layout.RESERVE
        self._file_mode = file_mode
        self._dir_mode = dir_mode

    def make(self) -> bool:
        """Make what is missing of it; False if there is no room to spare now."""
        try:
            wanted = {str(number) for number in range(INODES)} | {_BLOCKS}
            missing = wanted - set(os.listdir(self._folder) if self._folder.is_dir() else ())
            if not missing:
                return True
            if not self._has_room():
                return False
            self._folder.mkdir(exist_ok=True)
            self._folder.chmod(self._dir_mode)
            for name in missing:
                # Random, because a file system that compresses would keep no room for zeros.
                self._write(name, os.urandom(BYTES) if name == _BLOCKS else b"")
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Give it up; False if there was nothing to give."""
        freed = False
        with suppress(OSError):
            for path in list(self._folder.iterdir()):
                if path.name == _BLOCKS or path.name.isdecimal():
                    path.unlink(missing_ok=True)
                    freed = True
        return freed

    def _has_room(self) -> bool:
        free = os.statvfs(self._root)
        inodes = free.f_favail >= SPARE * INODES or free.f_files == 0
        return inodes and free.f_bavail * free.f_frsize >= SPARE * BYTES

    def _write(self, name: str, data: bytes) -> None:
        fd = os.open(
            self._folder / name,
            os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            self._file_mode,
        )
        with os.fdopen(fd, "wb") as file:
            if data:
                file.write(data)
                file.flush()
                os.fsync(fd)


def try_writing(storage: Storage, size_bytes: int) -> None:
    """Raises StorageError, in the storage's words, unless it takes writes now.

    size_bytes: for how much there must be room, as far as the storage can tell
    """
    if isinstance(storage, HasReserve):
        storage.check_room(size_bytes)
    name = f"{layout.RESERVE}probe-{secrets.token_hex(8)}"
    storage.put(name, os.urandom(4096))
    storage.delete(name)


def full_words(storage: Storage) -> str:
    """What is used up where `storage` lies on a file system that tells it; else empty."""
    path = storage.local_path(layout.RESOLVED)
    if path is None:
        return ""
    try:
        free = os.statvfs(path.parent)
    except OSError:
        return ""
    if free.f_bavail * free.f_frsize < BYTES:
        return f"No space left on device ({free.f_bavail * free.f_frsize} bytes)"
    if free.f_files and free.f_favail < INODES:
        return f"No space left on device ({free.f_favail} inodes)"
    return ""
