"""Opening a file whose name comes from outside: only regular files are ever opened.

A FIFO would block for ever, and opening a device can act on it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path


class NotRegular(OSError):
    """There is something of that name which must not be opened."""


def open_regular(path: Path | str) -> BufferedReader:
    """The file, for reading. OSError where it cannot be opened, or is no regular file."""
    _refuse_others(Path(path).stat().st_mode, path)
    # Not blocking, in case it was changed for a FIFO meanwhile.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        _refuse_others(os.fstat(fd).st_mode, path)
        file = os.fdopen(fd, "rb")
        undo.pop_all()
    return file


def read_regular(path: Path | str) -> bytes:
    """The whole content of a regular file; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _refuse_others(mode: int, path: Path | str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise NotRegular(errno.EINVAL, "no regular file, but a FIFO or a device", str(path))
