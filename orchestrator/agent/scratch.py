"""The agent's folder on its node's disk: locked while it lives, removed by a later agent if it was
killed. A process id would say nothing, since it may be one of another container; a lock is known
to the kernel that both share.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOCK = re.compile(r"\.?(qvl-[0-9a-f]{8})\.lock")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_COPY = re.compile(r"[0-9]{6,}-[0-9]+")
_READ = 4096


@contextmanager
def folder(run_id: str) -> Iterator[Path]:
    """A new private folder below the system's one for temporary files, and its lock beside it."""
    base = Path(tempfile.gettempdir())
    with ExitStack() as undo:
        lock = _locked(base, run_id, undo)
        place = lock.with_suffix("")
        undo.callback(lock.unlink, missing_ok=True)
        place.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, place, ignore_errors=True)
        yield place


def collect(copies_base: str | None = None) -> None:
    """Remove what killed agents of this user have left here, the copies of checkpoints that their
    helpers made below `copies_base` among it. As far as that goes: nothing depends on it.
    """
    base = Path(tempfile.gettempdir())
    dead: set[str] = set()
    living: set[str] = set()
    with suppress(OSError):
        for entry in sorted(base.iterdir()):
            if _LOCK.fullmatch(entry.name):
                _look(entry, dead, living)
        for run_id in dead - living:
            _remove_copies(Path(copies_base or base) / f"qvl-{os.getuid()}" / run_id)


def _locked(base: Path, run_id: str, undo: ExitStack) -> Path:
    """A new lock file, which nobody has seen before it was locked."""
    while True:
        name = f"qvl-{secrets.token_hex(4)}"
        hidden, lock = base / f".{name}.lock", base / f"{name}.lock"
        if lock.exists() or lock.with_suffix("").exists():
            continue
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, run_id.encode())
        with suppress(FileNotFoundError):  # taken for litter in the moment before the lock
            hidden.rename(lock)
            return lock


def _look(lock: Path, dead: set[str], living: set[str]) -> None:
    """Remove what belongs to a lock that nobody holds."""
    with suppress(OSError), ExitStack() as undo:
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            return
        run_id = os.read(fd, _READ).decode(errors="replace")
        known = {run_id} if _RUN.fullmatch(run_id) else set()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            living |= known
            return
        if lock.lstat().st_ino != found.st_ino:
            return
        match = _LOCK.fullmatch(lock.name)
        assert match is not None, "only such names are looked at"
        _remove(lock.with_name(match[1]))
        lock.unlink()
        dead |= known


def _remove_copies(folder_of_run: Path) -> None:
    with suppress(OSError):
        for entry in sorted(folder_of_run.iterdir()):
            if _COPY.fullmatch(entry.name):
                _remove(entry)
        folder_of_run.rmdir()


def _remove(place: Path) -> None:
    """A folder of this user, never what a link leads to."""
    with suppress(FileNotFoundError):
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            shutil.rmtree(place, ignore_errors=True)
