"""Storage on a file system that follows POSIX: local disks, NFS, Lustre, GPFS.

Durable means: file and directory fsynced. `create` uses link(2), which is atomic on NFS
too, and renameat2(2) where the file system knows no hard links: a file is never visible
under its name before it is whole.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from orchestrator.contract import layout
from orchestrator.contract.manifest import FileEntry
from orchestrator.contract.regular import NotRegular, open_regular, read_regular
from orchestrator.errors import StorageError, UserError
from orchestrator.storage.hashing import ContentHash
from orchestrator.storage.noreplace import rename_new
from orchestrator.storage.protocol import (
    TMP,
    Created,
    Damaged,
    Entry,
    NotFound,
    PendingUpload,
    Sink,
    Taken,
    path_parts,
)
from orchestrator.storage.reserve import FULL, Reserve

T = TypeVar("T")

EARLY_BYTES = 16 << 20
"""A large file goes to the disk in such pieces while it is still being written."""
_BEGIN_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_MEDIA = {errno.EIO, errno.EBADMSG, errno.EUCLEAN}
_NO_NOREPLACE = {None, errno.EINVAL, *_NO_LINKS}


class PosixStorage:
    """Objects are files below `root`; created 0600 in folders 0700 (0660/2770 if shared).

    group_sharing: None = as the root stands, if it does
    """

    def __init__(self, root: Path, *, group_sharing: bool | None = None) -> None:
        self._root = root
        shared = _is_shared(root) if group_sharing is None else group_sharing
        self._file_mode = 0o660 if shared else 0o600
        self._dir_mode = 0o2770 if shared else 0o700
        self._durable: set[Path] = set()
        """Folders whose own entry was fsynced, by whoever made them."""
        self._reserve = Reserve(root, self._file_mode, self._dir_mode)

    @property
    def uri(self) -> str:
        return str(self._root)

    def check_private(self) -> None:
        """Refuse a root that others could write (UserError); a missing one is fine."""
        try:
            mode = stat.S_IMODE(self._root.stat().st_mode)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise StorageError(f"{self._root}: {fault.strerror or fault}") from fault
        forbidden = 0o002 if self._file_mode & 0o060 else 0o022
        if mode & forbidden:
            raise UserError(
                f"{self._root} can be written by others (mode {mode:04o})",
                hint=f"chmod {'o-w' if forbidden == 0o002 else 'go-w'} {self._root}",
            )

    def local_path(self, path: str) -> Path | None:
        return self._at(path)

    def get(self, path: str) -> bytes:
        with _translated(path), _nothing_there(path), _media_errors(path):
            return read_regular(self._at(path))

    def read(self, path: str, chunk_bytes: int = 1 << 20) -> Iterator[memoryview]:
        with (
            _translated(path),
            _nothing_there(path),
            _media_errors(path),
            open_regular(self._at(path)) as file,
        ):
            buffer = bytearray(chunk_bytes)
            while count := file.readinto(buffer):
                yield memoryview(buffer)[:count]

    def put(self, path: str, data: bytes) -> None:
        with _translated(path):
            target = self._at(path)
            with self._dropped_on_failure(target.parent):
                self._with_reserve(path, lambda: self._put(target, data))

    def create(self, path: str, data: bytes) -> Created | Taken:
        with _translated(path):
            target = self._at(path)
            with self._dropped_on_failure(target.parent):
                return self._with_reserve(path, lambda: self._create(target, data))

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        with _translated(prefix):
            folder = self._at(prefix) if prefix else self._root
            return sorted(self._walk(folder, deep=deep), key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        with _translated(path):
            target = self._at(path)
            with suppress(FileNotFoundError, NotADirectoryError):
                target.unlink()
            self._drop_empty(target.parent)

    def uploads(self) -> Iterator[PendingUpload]:
        """See protocol.HasUploads: the temporary files of writers that live or have died."""
        for folder, _, names in os.walk(self._root):
            for name in names:
                if not name.startswith(TMP):
                    continue
                path = Path(folder) / name
                with _translated(name), suppress(FileNotFoundError):
                    begun = path.lstat().st_mtime
                    yield PendingUpload(path.relative_to(self._root).as_posix(), name, begun)

    def abort_upload(self, upload: PendingUpload) -> None:
        """See protocol.HasUploads."""
        with _translated(upload.path):
            (self._root / upload.path).unlink(missing_ok=True)
            self._drop_empty((self._root / upload.path).parent)

    @contextmanager
    def write_stream(self, path: str) -> Iterator[Sink]:
        with _translated(path):
            target = self._at(path)
            with self._dropped_on_failure(target.parent):
                self._make_dir(target.parent)
                sink = _FileSink(target, self._file_mode)
                try:
                    yield sink
                    sink.finish()
                    _fsync_dir(target.parent)
                except BaseException:
                    sink.abandon()
                    raise

    def make_reserve(self) -> bool:
        """See protocol.HasReserve."""
        return self._reserve.make()

    def check_room(self, size_bytes: int) -> None:
        """See protocol.HasReserve."""
        name = f"{layout.RESERVE}{size_bytes}"
        with _translated(name):
            tmp = self._write_tmp(self._at(name), b"")
            try:
                fd = os.open(tmp, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    free = os.fstatvfs(fd)
                    if free.f_blocks and size_bytes > free.f_bfree * free.f_frsize:
                        # posix_fallocate would first take all that is left, from everybody.
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.posix_fallocate(fd, 0, max(1, size_bytes))
                finally:
                    os.close(fd)
            finally:
                tmp.unlink()

    def _with_reserve(self, path: str, write: Callable[[], T]) -> T:
        """What `write` gives; tried once more with the reserve's room, if `path` may have it."""
        try:
            return write()
        except OSError as fault:
            if fault.errno not in FULL or not layout.is_vital(path) or not self._reserve.release():
                raise
        return write()

    def _put(self, target: Path, data: bytes) -> None:
        tmp = self._write_tmp(target, data)
        with _removed_on_failure(tmp):
            os.replace(tmp, target)
        _fsync_dir(target.parent)

    def _create(self, target: Path, data: bytes) -> Created | Taken:
        if target.exists():
            return self._settle(target, data)
        tmp = self._write_tmp(target, data)
        try:
            _name_new(tmp, target)
        except FileExistsError:
            return self._settle(target, data)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(tmp)
        _fsync_dir(target.parent)
        return Created()

    def _at(self, path: str) -> Path:
        return self._root.joinpath(*path_parts(path))

    def _walk(self, folder: Path, *, deep: bool) -> Iterator[Entry]:
        try:
            items = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in items:
            if item.name.startswith(TMP):
                continue
            if item.is_dir(follow_symlinks=False):
                if deep:
                    yield from self._walk(Path(item.path), deep=True)
                continue
            with suppress(FileNotFoundError):
                size = item.stat(follow_symlinks=False).st_size
                yield Entry(Path(item.path).relative_to(self._root).as_posix(), size)

    def _write_tmp(self, target: Path, data: bytes) -> Path:
        tmp = target.parent / f"{TMP}{secrets.token_hex(8)}"
        self._make_dir(target.parent)
        with _removed_on_failure(tmp):
            _write_all(_open_new(tmp, self._file_mode), data)
        return tmp

    def _settle(self, target: Path, data: bytes) -> Created | Taken:
        there = read_regular(target)
        if there != data:
            return Taken(there)
        _fsync_dir(target.parent)
        return Created()

    def _make_dir(self, folder: Path) -> None:
        """Make what is missing; sync, once, what others made: they may not have come to it."""
        doubtful = []
        while folder != self._root and not (folder in self._durable and folder.is_dir()):
            doubtful.append(folder)
            folder = folder.parent
        while not folder.is_dir():
            doubtful.append(folder)
            folder = folder.parent
        for path in reversed(doubtful):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
                path.chmod(self._dir_mode)
            _fsync_dir(path.parent)
            self._durable.add(path)

    @contextmanager
    def _dropped_on_failure(self, folder: Path) -> Iterator[None]:
        """Folders that were made for what could not be written cost an inode each."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._drop_empty(folder)
            raise

    def _drop_empty(self, folder: Path) -> None:
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            self._durable.discard(folder)
            folder = folder.parent


class _FileSink:
    """A file that is written once, hashed, and synced when finished."""

    def __init__(self, target: Path, mode: int) -> None:
        with suppress(FileNotFoundError):
            target.unlink()
        self._target = target
        self._file = _open_new(target, mode)
        self._content = ContentHash()
        self._written = self._begun = 0
        """Bytes, and those that the kernel was told to begin with."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        with self._content.beside(view):
            for start in range(0, view.nbytes, EARLY_BYTES):
                self._written += self._file.write(view[start : start + EARLY_BYTES])
                if self._written - self._begun >= EARLY_BYTES:
                    self._begin_writing()
        return view.nbytes

    def flush(self) -> None:
        self._file.flush()

    def _begin_writing(self) -> None:
        """Keep the disk busy from now on: the sync at the end has less to wait for.

        A hint only: what goes wrong is told by that sync.
        """
        self._file.flush()
        begin, length = _early_writer(), self._written - self._begun
        if begin is not None:
            begin(self._file.fileno(), self._begun, length, _BEGIN_WRITING)
        self._begun = self._written

    def entry(self, path: str) -> FileEntry:
        return self._content.entry(path)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._inode = _inode(os.fstat(self._file.fileno()))
        self._file.close()

    def abandon(self) -> None:
        """Remove what was written: a full disk needs the room. What another writer has put in
        its place meanwhile is left alone.
        """
        with suppress(OSError):
            if not self._file.closed:
                self._inode = _inode(os.fstat(self._file.fileno()))
            if _inode(self._target.lstat()) == self._inode:
                self._target.unlink()
        with suppress(OSError):
            self._file.close()


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@cache
def _early_writer() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2): fd, offset, bytes, flags; None where the C library has none."""
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def _is_shared(root: Path) -> bool:
    try:
        return bool(root.stat().st_mode & 0o020)
    except OSError:
        return False


@contextmanager
def _nothing_there(path: str) -> Iterator[None]:
    """A folder, a FIFO or a device, or a path below a file, is no object."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError) as fault:
        raise NotFound(f"{path}: not found") from fault
    except NotRegular as fault:
        raise NotFound(f"{path}: {fault.strerror}") from fault


@contextmanager
def _media_errors(path: str) -> Iterator[None]:
    """The disk gives this file's bytes no more, or the file system finds them wrong."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in _MEDIA:
            raise
        raise Damaged(f"{path}: {fault.strerror or fault}") from fault


@contextmanager
def _removed_on_failure(tmp: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            tmp.unlink()
        raise


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as fault:
        raise NotFound(f"{path}: not found") from fault
    except OSError as fault:
        raise StorageError(f"{path}: {fault.strerror or fault}") from fault


def _open_new(path: Path, mode: int) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    os.fchmod(fd, mode)
    return os.fdopen(fd, "wb", buffering=1 << 20)


def _name_new(tmp: Path, target: Path) -> None:
    """Give a finished file the name `target` unless somebody has it (FileExistsError)."""
    try:
        os.link(tmp, target)
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        try:
            rename_new(tmp, target)
        except OSError as second:
            if second.errno not in _NO_NOREPLACE:
                raise
            raise StorageError(
                f"{target.parent}: this file system can neither link files ({fault.strerror}) nor "
                f"rename them without replacing ({second.strerror or second})",
                hint="keep runs on another file system: no commit would be safe on this one",
            ) from second


def _write_all(file: BinaryIO, data: bytes) -> None:
    with file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
