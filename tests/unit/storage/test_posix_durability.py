"""What PosixStorage syncs before it acknowledges, and what a failing disk leaves behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StorageError, UserError
from orchestrator.storage import posix as posix_module
from orchestrator.storage.opening import child, open_storage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Created, NotFound, PendingUpload, Taken


class Trace:
    """Calls in order: ("fsync", path), ("link", target), ("replace", target), ("mkdir", path)."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[tuple[str, str]] = []
        self._root = root
        fsync, link, replace, mkdir = os.fsync, os.link, os.replace, os.mkdir

        def note(kind: str, path: str) -> None:
            self.calls.append((kind, os.path.relpath(path, root)))

        def traced_fsync(fd: int) -> None:
            fsync(fd)
            note("fsync", os.readlink(f"/proc/self/fd/{fd}"))

        def traced(kind: str, call: Callable[..., None], which: int) -> Callable[..., None]:
            def run(*args: object, **kw: object) -> None:
                call(*args, **kw)
                note(kind, str(args[which]))

            return run

        patch.setattr(os, "fsync", traced_fsync)
        patch.setattr(os, "link", traced("link", link, 1))
        patch.setattr(os, "replace", traced("replace", replace, 1))
        patch.setattr(os, "mkdir", traced("mkdir", mkdir, 0))

    def kinds(self) -> list[tuple[str, str]]:
        """Temporary names made alike."""
        return [(k, "TMP" if ".tmp-" in p else p) for k, p in self.calls]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir(mode=0o700)
    return root


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[Trace]:
    with monkeypatch.context() as patch:
        yield Trace(patch, root)


def test_create_syncs_file_then_links_then_syncs_the_folder(root: Path, trace: Trace) -> None:
    PosixStorage(root).create("log/1", b"x")
    assert trace.kinds() == [
        ("mkdir", "log"),
        ("fsync", "."),
        ("fsync", "TMP"),
        ("link", "log/1"),
        ("fsync", "log"),
    ]


def test_put_syncs_file_then_replaces_then_syncs_the_folder(root: Path, trace: Trace) -> None:
    PosixStorage(root).put("a/b/c", b"x")
    assert trace.kinds() == [
        ("mkdir", "a"),
        ("fsync", "."),
        ("mkdir", "a/b"),
        ("fsync", "a"),
        ("fsync", "TMP"),
        ("replace", "a/b/c"),
        ("fsync", "a/b"),
    ]


def test_a_stream_is_synced_with_its_folder_when_it_ends(root: Path, trace: Trace) -> None:
    with PosixStorage(root).write_stream("a/b") as sink:
        sink.write(b"x" * 10)
        assert ("fsync", "a/b") not in trace.kinds()
    assert trace.kinds() == [("mkdir", "a"), ("fsync", "."), ("fsync", "a/b"), ("fsync", "a")]


def test_a_missing_root_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(monkeypatch, tmp_path)
    PosixStorage(tmp_path / "runs" / "r1").put("a", b"")
    assert trace.kinds()[:4] == [
        ("mkdir", "runs"),
        ("fsync", "."),
        ("mkdir", "runs/r1"),
        ("fsync", "runs"),
    ]


def test_a_folder_that_somebody_else_made_is_synced_by_its_first_user(
    root: Path, trace: Trace
) -> None:
    """Its maker may have been killed between mkdir and fsync."""
    os.makedirs(root / "a" / "b", 0o700)
    trace.calls.clear()
    storage = PosixStorage(root)
    storage.put("a/b/c", b"x")
    assert trace.kinds()[:2] == [("fsync", "."), ("fsync", "a")]
    trace.calls.clear()
    storage.put("a/b/d", b"x")
    assert trace.kinds() == [("fsync", "TMP"), ("replace", "a/b/d"), ("fsync", "a/b")]


def test_a_folder_removed_as_empty_is_made_and_synced_again(root: Path, trace: Trace) -> None:
    storage = PosixStorage(root)
    storage.put("a/x", b"")
    storage.delete("a/x")
    assert not (root / "a").exists()
    trace.calls.clear()
    storage.put("a/x", b"")
    assert trace.kinds()[:2] == [("mkdir", "a"), ("fsync", ".")]


def test_a_lost_reply_is_settled_durably(root: Path, trace: Trace) -> None:
    """The first writer may have died between link and fsync: the second syncs the folder."""
    storage = PosixStorage(root)
    storage.create("log/1", b"x")
    trace.calls.clear()
    assert storage.create("log/1", b"x") == Created()
    assert trace.kinds() == [("fsync", "log")]


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


def test_without_hard_links_a_whole_file_is_renamed_and_replaces_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    trace = Trace(monkeypatch, root)
    storage = PosixStorage(root)
    assert storage.create("log/1", b"mine") == Created()
    assert trace.kinds()[-2:] == [("fsync", "TMP"), ("fsync", "log")]
    assert storage.create("log/1", b"mine") == Created()
    assert storage.create("log/1", b"other") == Taken(b"mine")
    assert sorted(os.listdir(root / "log")) == ["1"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, None])
def test_a_file_system_on_which_no_commit_would_be_safe_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_links: None, number: int | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no") if number else OSError("no renameat2")

    monkeypatch.setattr(posix_module, "rename_new", refuse)
    with pytest.raises(StorageError, match="can neither link files .* nor rename them") as caught:
        PosixStorage(root).create("1", b"mine")
    assert "another file system" in str(caught.value)
    assert os.listdir(root) == []


def test_a_rename_that_fails_for_another_reason_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(posix_module, "rename_new", fail)
    with pytest.raises(StorageError, match="1: No space left on device"):
        PosixStorage(root).create("1", b"mine")
    assert os.listdir(root) == []


def test_without_hard_links_a_loser_that_came_late_sees_the_winner(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        target.write_bytes(b"faster")
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    assert PosixStorage(root).create("1", b"mine") == Taken(b"faster")


def test_a_link_that_comes_late_loses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"faster")
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    assert PosixStorage(root).create("1", b"mine") == Taken(b"faster")
    assert os.listdir(root) == ["1"]


# --- errors of the disk

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS, errno.ESTALE]


def _verbs(storage: PosixStorage) -> dict[str, Callable[[], object]]:
    def stream() -> None:
        with storage.write_stream("d/x") as sink:
            sink.write(b"12345")

    return {
        "put": lambda: storage.put("d/x", b"12345"),
        "create": lambda: storage.create("d/x", b"12345"),
        "stream": stream,
    }


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("verb", ["put", "create", "stream"])
@pytest.mark.parametrize("call", ["open", "fsync", "link", "replace"])
def test_a_failing_call_is_a_storage_error_with_the_path_and_leaves_no_temporary(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, verb: str, call: str
) -> None:
    (root / "d").mkdir()
    storage = PosixStorage(root)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        needed = {"link": ("create",), "replace": ("put",)}.get(call, ("put", "create", "stream"))
        if verb not in needed:
            return
        with pytest.raises(StorageError, match="d/x: " + os.strerror(number)) as caught:
            _verbs(storage)[verb]()
    assert not isinstance(caught.value, NotFound)
    assert caught.value.exit_code == 69
    assert list(root.rglob("*")) == [], "what a failed write leaves costs room"


@pytest.mark.parametrize("verb", ["put", "create", "stream"])
def test_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """For real: the kernel's /dev/full answers ENOSPC at the flush."""
    from orchestrator.storage import posix

    storage = PosixStorage(root)

    def full(path: Path, mode: int) -> object:
        path.touch()
        return open("/dev/full", "wb", buffering=1 << 20)

    monkeypatch.setattr(posix, "_open_new", full)
    with pytest.raises(StorageError, match="d/x: No space left on device"):
        _verbs(storage)[verb]()
    assert [p for p in root.rglob("*") if verb != "stream"] == []


def test_a_root_whose_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a: "):
        PosixStorage(tmp_path / "file" / "run").put("a", b"")


def test_temporary_files_of_the_dead_are_not_listed(root: Path) -> None:
    (root / ".tmp-0123").write_bytes(b"half")
    (root / "a").mkdir()
    (root / "a" / ".tmp-4567").write_bytes(b"half")
    assert PosixStorage(root).list("", deep=True) == []


def test_temporary_files_of_the_dead_can_be_found_and_removed(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / ".tmp-4567").write_bytes(b"half")
    (root / "a" / "whole").write_bytes(b"1")
    os.utime(root / "a" / "b" / ".tmp-4567", (100.0, 100.0))
    storage = PosixStorage(root)
    (found,) = storage.uploads()
    assert found == PendingUpload("a/b/.tmp-4567", ".tmp-4567", 100.0)
    storage.abort_upload(found)
    storage.abort_upload(found)
    assert os.listdir(root / "a") == ["whole"]
    assert list(PosixStorage(root / "none").uploads()) == []


def test_links_in_the_tree_are_listed_as_objects_and_removed_as_links(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_bytes(b"1")
    (root / "a").mkdir()
    os.symlink(tmp_path / "outside", root / "a" / "link")
    storage = PosixStorage(root)
    assert [e.path for e in storage.list("a/", deep=True)] == ["a/link"]
    storage.delete("a/link")
    assert (tmp_path / "outside" / "precious").exists()
    assert os.listdir(root) == []


def test_a_stream_replaces_a_link_and_does_not_follow_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    os.symlink(tmp_path / "precious", root / "x")
    with PosixStorage(root).write_stream("x") as sink:
        sink.write(b"new")
    assert (tmp_path / "precious").read_bytes() == b"1"
    assert (root / "x").read_bytes() == b"new"


def test_a_linked_root_works(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "by link")
    storage = open_storage(str(tmp_path / "by link"))
    storage.put("a/b", b"1")
    assert (root / "a" / "b").read_bytes() == b"1"


# --- modes


def _modes(root: Path) -> dict[str, int]:
    found = {".": stat.S_IMODE(root.stat().st_mode)}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            found[str(path.relative_to(root))] = stat.S_IMODE(path.stat().st_mode)
    return found


def _fill(storage: PosixStorage) -> None:
    storage.put("a/put", b"")
    storage.create("a/b/create", b"")
    with storage.write_stream("c/stream"):
        pass


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o027, 0o777])
@pytest.mark.parametrize("shared", [False, True])
def test_modes_under_any_umask(tmp_path: Path, umask: int, shared: bool) -> None:
    root = tmp_path / "runs" / "r"
    old = os.umask(umask)
    try:
        _fill(PosixStorage(root, group_sharing=shared))
    finally:
        os.umask(old)
    folder, file = (0o2770, 0o660) if shared else (0o700, 0o600)
    expected = {
        ".": folder,
        "a": folder,
        "a/b": folder,
        "c": folder,
        "a/put": file,
        "a/b/create": file,
        "c/stream": file,
    }
    assert _modes(root) == expected


def test_modes_without_hard_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    _fill(PosixStorage(root))
    assert _modes(root)["a/b/create"] == 0o600


@pytest.mark.parametrize(
    ("mode", "shared", "refused"),
    [
        (0o700, False, False),
        (0o750, False, False),
        (0o755, False, False),
        (0o770, False, True),
        (0o702, False, True),
        (0o1777, False, True),
        (0o2770, True, False),
        (0o2777, True, True),
    ],
)
def test_a_root_that_others_can_write_is_refused(
    root: Path, mode: int, shared: bool, refused: bool
) -> None:
    root.chmod(mode)
    if refused:
        with pytest.raises(UserError, match=f"can be written by others .mode {mode:04o}") as caught:
            open_storage(str(root), group_sharing=shared)
        assert caught.value.hint == f"chmod {'o-w' if shared else 'go-w'} {root}"
    else:
        open_storage(f"file://{root}", group_sharing=shared)


# --- opening


def test_a_root_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(self: Path, **more: object) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(StorageError, match=f"{tmp_path}: Stale file handle"):
        PosixStorage(tmp_path).check_private()


def test_a_missing_root_may_be_opened(tmp_path: Path) -> None:
    assert open_storage(str(tmp_path / "none")).list("") == []


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("runs/r", "'runs/r' is not absolute"),
        ("file://runs", "is not absolute"),
        ("ftp://host/x", "ftp:// is not supported"),
        ("", "is not absolute"),
    ],
)
def test_uris_that_are_refused(uri: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        open_storage(uri)


def test_child() -> None:
    assert child("memory://a/", "b") == "memory://a/b"
    assert child("/x", "b") == "/x/b"
