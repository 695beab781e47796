"""The state folder where it cannot be used: one cause and one cure, never a fault of ours."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.registry.store import Registry, RunEntry
from tests.unit.cli.shells import JOB, RUN, Built, Desk, Shell

ENTRY = RunEntry(run_id="a-1", name="a", backend="local", uri="/none/a-1", created_at=0.0, gpus=1)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and other users, need root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k,nr_inodes=64", "qvl", folder], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def fill(folder: Path) -> None:
    """Until not one byte more goes in."""
    with (folder / "full").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def told(shell: Shell, *argv: str, code: int) -> str:
    """The one sentence of the error, and its cure."""
    shell(*argv, code=code)
    lines = shell.err.splitlines()
    assert len(lines) == 2, shell.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  hint: ")
    assert "internal error" not in shell.err
    return shell.err


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("QVL_STATE_DIR", str(folder))
    return Registry(folder)


@as_root
def test_a_read_only_home_can_still_be_looked_at(
    small: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = use(small / "state", monkeypatch)
    known.add(ENTRY)
    remount(small, "ro")
    assert shell.json("status")["runs"][0]["run_id"] == "a-1"
    said = told(shell, "rm", "a-1", "--yes", code=78)
    assert f"{small}/state" in said
    assert "read-only" in said.lower()
    assert "QVL_STATE_DIR" in said


@as_root
def test_a_read_only_home_without_a_registry(
    small: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(small / "state", monkeypatch)
    remount(small, "ro")
    assert shell.json("status") == {"runs": []}
    said = told(shell, "nodes", "clear", code=78)
    assert "Read-only file system" in said


@as_root
def test_a_full_home_says_so(small: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    known = use(small / "state", monkeypatch)
    known.add(ENTRY)
    fill(small)
    with pytest.raises(Exception, match="full|No space") as caught:
        for number in range(200):
            known.add(RunEntry(**{**_fields(ENTRY), "run_id": f"b-{number:0200}"}))
    assert caught.value.exit_code == 69  # type: ignore[attr-defined]
    assert "free some space" in str(caught.value)
    assert shell.json("status")["runs"][0]["run_id"] == "a-1"
    other = use(small / "another", monkeypatch)
    with pytest.raises(Exception, match="full|No space") as caught:
        other.add(ENTRY)
    assert caught.value.exit_code == 69  # type: ignore[attr-defined]


@as_root
@pytest.mark.parametrize(("how", "code"), [("ro", 78), ("full", 69)])
@pytest.mark.parametrize("secret", [False, True])
def test_submit_says_so_too_and_leaves_nothing(
    small: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch, how: str, code: int, secret: bool
) -> None:
    if secret:
        desk.job.write_text(JOB + "secrets: [MY_TOKEN]\n")
        monkeypatch.setenv("MY_TOKEN", "secret-value")
    use(small / "state", monkeypatch)
    remount(small, "ro") if how == "ro" else fill(small)
    said = told(desk, "submit", str(desk.job), code=code)
    assert f"{small}/state" in said
    assert "QVL_STATE_DIR" in said
    assert list((desk.bench.folder / "runs").glob("*")) == []
    assert desk.json("status") == {"runs": []}


def _fields(entry: RunEntry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in entry.__slots__}


def test_a_state_folder_that_is_a_file(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        use(path, monkeypatch)
        for argv in (["status"], ["logs", "x"], ["controller", "once"], ["rm", "x", "--yes"]):
            said = told(shell, *argv, code=78)
            assert str(path) in said
            assert "Not a directory" in said


def test_no_home_at_all(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no line in /etc/passwd."""
    for name in ("QVL_STATE_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    said = told(shell, "status", code=78)
    assert "QVL_STATE_DIR" in said


@contextmanager
def as_nobody() -> Iterator[None]:
    """What has to be imported is imported before: it may lie below a private home."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@as_root
@pytest.mark.parametrize("argv", [["status"], ["nodes", "clear"]])
def test_a_state_folder_of_another_user(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    known = use(tmp_path / "state", monkeypatch)
    shell(*argv)
    known.add(ENTRY)
    with as_nobody():
        said = told(shell, *argv, code=78)
    assert f"the state folder {tmp_path}/state cannot be used: " in said
    assert "Permission denied" in said
    assert "QVL_STATE_DIR" in said


@pytest.mark.parametrize("damage", ["header", "page", "cut"])
def test_a_damaged_registry_is_named_and_adopt_builds_a_new_one(
    shell: Shell, run: Built, damage: str
) -> None:
    file = run.registry.state_dir / "runs.sqlite"
    for number in range(200):
        run.registry.add(RunEntry(**{**_fields(ENTRY), "run_id": f"b-{number:0200}"}))
    data = bytearray(file.read_bytes())
    if damage == "header":
        data[:16] = b"not a database\0\0"
    elif damage == "page":
        data[4096:] = b"\xff" * (len(data) - 4096)
    else:
        del data[8192:]
    file.write_bytes(data)
    for argv in (["status"], ["cancel", RUN], ["controller", "once"]):
        said = told(shell, *argv, code=73)
        assert f"{file} is damaged" in said
        assert "`adopt` with your run directories" in said
    text = shell("adopt", run.storage.uri)
    assert f"adopted {RUN}" in text
    (aside,) = run.registry.state_dir.glob("runs.sqlite.damaged-*")
    assert aside.read_bytes() == data
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(aside) in shell.err
    assert [r["run_id"] for r in shell.json("status")["runs"]] == [RUN]
    shell("adopt", run.storage.uri)
    assert len(list(run.registry.state_dir.glob("runs.sqlite.damaged-*"))) == 1


def test_a_damaged_row_is_not_believed_and_the_run_stays(shell: Shell, run: Built) -> None:
    with sqlite3.connect(run.registry.state_dir / "runs.sqlite") as db:
        db.execute("UPDATE runs SET row='{'")
    db.close()
    assert shell.json("status")["runs"][0]["run_id"] == RUN


def test_a_registry_that_another_process_holds(
    shell: Shell, run: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.registry.store.BUSY_S", 0.1)
    db = sqlite3.connect(run.registry.state_dir / "runs.sqlite", isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    said = told(shell, "status", code=69)
    assert "locked" in said
    db.close()
