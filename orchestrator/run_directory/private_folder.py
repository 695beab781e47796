"""Private folders on this node's disk for what is copied out of a remote storage."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import StorageError


def create(base: Path | None, *names: str) -> Path:
    """`<base>/qvl-<uid>/<names...>`, made where missing, 0700 at every level.

    base: None = the system's folder for temporary files

    Raises StorageError if somebody else owns or could write a part of it.
    """
    folder = base or Path(tempfile.gettempdir())
    try:
        for name in (f"qvl-{os.getuid()}", *names):
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            owned = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not owned or found.st_mode & 0o077:
                raise StorageError(
                    f"{folder} is not a private folder of this user",
                    hint="remove it, or set TMPDIR to a folder of your own",
                )
    except OSError as fault:
        raise _no_place(folder, fault) from fault
    return folder


def write(folder: Path, name: str, chunks: Iterable[bytes | memoryview]) -> None:
    """Write one file below `folder`, 0600, replacing an older one. Not synced: it is a copy."""
    path = folder / name
    try:
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
    except OSError as fault:
        raise _no_place(path, fault) from fault
    with file:
        for chunk in chunks:
            _write_all(file.fileno(), memoryview(chunk), path)


def remove(folder: Path) -> None:
    """Remove a folder of copies, as far as that goes."""
    shutil.rmtree(folder, ignore_errors=True)


def _write_all(fd: int, rest: memoryview, path: Path) -> None:
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as fault:
        raise _no_place(path, fault) from fault


def _no_place(path: Path, fault: OSError) -> StorageError:
    return StorageError(
        f"{path}: {fault.strerror or fault}",
        hint="the node needs room for one copy of the checkpoint: see TMPDIR",
    )
