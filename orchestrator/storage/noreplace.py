"""renameat2(2) with RENAME_NOREPLACE, which Python does not offer.

For file systems without hard links (SMB shares, some FUSE mounts): like link(2) it makes a
finished file visible under a name that nobody had taken, in one step.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def rename_new(source: Path, target: Path) -> None:
    """Rename; FileExistsError if `target` exists, OSError if that cannot be ruled out here."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError("this C library has no renameat2")
    paths = os.fsencode(source), os.fsencode(target)
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))
