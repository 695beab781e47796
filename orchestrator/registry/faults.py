"""What is wrong with a state folder or its registry, and the cure, in one sentence each."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from orchestrator.contract.env import STATE_DIR
from orchestrator.errors import QvlError, RegistryDamaged, StorageError, Unreachable, UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ELSEWHERE = f"{STATE_DIR} names another folder (for Slurm, one that the nodes see too)"


def of_files(folder: Path, fault: OSError) -> QvlError:
    """For an error of the file system below the state folder `folder`."""
    if isinstance(fault, FileExistsError):
        fault = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    words = f"the state folder {folder} cannot be used: {fault.strerror or fault}"
    if fault.errno in FULL:
        return StorageError(words, hint=f"free some space there, or {_ELSEWHERE}")
    if fault.errno == errno.EIO:
        return StorageError(words, hint=f"once its file system answers try again, or {_ELSEWHERE}")
    return UserError(words, hint=_ELSEWHERE)


def of_database(file: Path, fault: sqlite3.Error) -> QvlError | None:
    """For what SQLite says of the registry `file`; None: this is an internal error."""
    match getattr(fault, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return RegistryDamaged(
                f"the registry {file} is damaged ({fault})",
                hint="it is an index and can be rebuilt: `adopt` with your run "
                "directories (those below checkpoint.uri) moves it aside and enters them anew",
            )
        case sqlite3.SQLITE_FULL:
            return of_files(file.parent, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return of_files(file.parent, OSError(errno.EACCES, _why_refused(file, fault)))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unreachable(
                f"the registry {file} is locked by another process ({fault})",
                hint="try again; if it stays locked, its file system may not support locks: "
                + _ELSEWHERE,
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_PROTOCOL:
            return of_files(file.parent, OSError(errno.EIO, str(fault)))
    return None


def _why_refused(file: Path, fault: sqlite3.Error) -> str:
    """The kernel's own word, which SQLite does not pass on."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError as refused:
        return f"{file.name}: {refused.strerror}"
    return str(fault)
