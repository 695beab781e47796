"""A stranger's run directory is read by anybody, and executes nothing until it is trusted."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.services.job import submitter
from orchestrator.clock import SystemClock, iso
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.site import parse_site
from orchestrator.contract import layout
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.records import SubmissionRecord
from orchestrator.contract.spec import StartFrom
from orchestrator.operations.submit import make_spec
from orchestrator.run_directory import attempts
from orchestrator.storage.opening import open_storage
from orchestrator.storage.ownership import foreign_hands
from tests.harness.runs import ROOT, Bench
from tests.unit.cli.shells import JOB, RUN, Desk

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="other users are played by root"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
NOBODY, OTHER = 65534, 12345


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="trust-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Stranger:
    """A run directory of another user, whose interpreter leaves a mark wherever it runs."""

    def __init__(self, bench: Bench, base: Path, owner: int) -> None:
        self.mark = base / "mark"
        self.python = base / "python"
        self.python.write_text(f"#!/bin/sh\necho ran >> {self.mark}\n")
        self.python.chmod(0o755)
        base.chmod(0o777)
        job = replace(
            bench.job(python=str(self.python)),
            checkpoint=replace(bench.job().checkpoint, uri=str(base / "runs")),
        )
        self.folder = base / "runs" / RUN
        storage = open_storage(str(self.folder))
        storage.put(layout.RESOLVED, pretty(to_json(job)))
        storage.put(layout.JOB, b"name: fake\n")
        spec = make_spec(
            job, RUN, str(self.folder), bench.registry.state_dir, submitter(SiteConfig()).site
        )
        record = SubmissionRecord(
            number=1, key=f"{RUN}-1", token="t", spec=replace(spec, env={"EVIL": "1"}),
            start=StartFrom(), time=iso(SystemClock().now()),
        )  # fmt: skip
        attempts.create_submission(storage, record)
        self.give(owner)

    def give(self, owner: int) -> None:
        for path in (self.folder.parent, self.folder, *self.folder.rglob("*")):
            os.chown(path, owner, owner)
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def stranger(desk: Desk, open_tmp: Path) -> Stranger:
    return Stranger(desk.bench, open_tmp, NOBODY)


def test_an_adopted_run_of_another_user_is_read_and_nothing_of_it_runs(
    desk: Desk, stranger: Stranger
) -> None:
    said = desk("adopt", str(stranger.folder))
    assert f"only read here: {stranger.folder} belongs to nobody (uid 65534)" in said
    assert f"qvl-orchestrate adopt --trust {RUN}" in said
    assert desk.row(RUN)["name"] == "fake"
    desk("events", RUN)
    before = sorted(p.name for p in stranger.folder.iterdir())
    found = desk.json("controller", "once", code=78)
    assert "is only read here" in found["error"]
    for command in (["resume", RUN], ["cancel", RUN], ["preempt", RUN]):
        desk(*command, code=78)
        assert "is only read here" in desk.err
    assert not stranger.mark.exists()
    assert sorted(p.name for p in stranger.folder.iterdir()) == before, "nor is anything written"


def test_trust_shows_what_would_run_and_asks(desk: Desk, stranger: Stranger) -> None:
    desk("adopt", "--trust", str(stranger.folder), code=2)
    assert "say --yes" in desk.err
    assert desk("controller", "once") == "no run needs a controller now\n"
    assert not stranger.mark.exists()
    said = desk("adopt", "--trust", "--yes", str(stranger.folder))
    for line in (f"python: {stranger.python}", "env.EVIL: 1", "owner: nobody (uid 65534)"):
        assert f"  {line}\n" in said
    desk("controller", "once")
    stranger_ran = _wait_for(stranger.mark)
    assert stranger_ran, "trusted, it runs"
    # The word was for this owner: another one's directory in its place is read only.
    stranger.mark.unlink()
    stranger.give(OTHER)
    assert "belongs to uid 12345" in desk.json("controller", "once", code=78)["error"]


def test_a_foreign_run_cannot_take_the_place_of_one_that_is_known(
    desk: Desk, stranger: Stranger, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    own = Stranger(desk.bench, tmp_path / "own", 0)
    desk("adopt", str(own.folder))
    desk("adopt", str(stranger.folder), code=78)
    assert f"run {RUN} is known already, at {own.folder}" in desk.err


def test_the_site_file_names_whom_its_controller_trusts(
    desk: Desk, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk("adopt", str(stranger.folder))
    site = tmp_path / "site.toml"
    monkeypatch.setenv("QVL_SITE_FILE", str(site))
    for text in (f"[trust]\nuids = [{OTHER}]\n", '[trust]\nroots = ["/elsewhere"]\n'):
        site.write_text(text)
        desk("controller", "once", code=78)
    assert not stranger.mark.exists()
    site.write_text(f"[trust]\nuids = [{NOBODY}]\n")
    desk("controller", "once")
    assert _wait_for(stranger.mark)
    stranger.folder.chmod(0o775)
    assert "group nogroup can write to" in desk.json("controller", "once", code=78)["error"]
    site.write_text(f'[trust]\nroots = ["{stranger.folder.parent}"]\n')
    desk("controller", "once")
    assert parse_site(b"[trust]\nuids=[1]\n", "x").trust.uids == (1,)


def test_tools_do_not_run_a_strangers_interpreter(
    desk: Desk, stranger: Stranger, open_tmp: Path
) -> None:
    job = open_tmp / "job.yaml"
    job.write_text(f"python: {stranger.python}\n{JOB}")
    for name in ("model", "train.json"):
        target = open_tmp / name
        source = desk.bench.folder / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    os.chown(job, NOBODY, NOBODY)
    told = desk.json("doctor", str(job), "--backend", "local")["findings"]
    [python] = [f for f in told if f["subject"].startswith("python ")]
    assert python["what"] == f"not looked at: {job} belongs to nobody (uid 65534)"
    desk("data", "check", str(job), code=78)
    assert f"{job} belongs to nobody (uid 65534): its python: and env: are left out" in desk.err
    assert not stranger.mark.exists()
    os.chown(job, 0, 0)
    desk.json("doctor", str(job), "--backend", "local")
    assert stranger.mark.exists(), "one's own job file is looked at with its interpreter"


def test_it_holds_for_an_ordinary_user_too(desk: Desk, stranger: Stranger, open_tmp: Path) -> None:
    """The same as uid 65534, for a directory of uid 12345, and for one of root."""
    stranger.give(OTHER)
    home = open_tmp / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    first = _as_nobody(home, "adopt", str(stranger.folder))
    assert f"{stranger.folder} belongs to uid 12345" in first.stdout, first.stderr
    once = _as_nobody(home, "controller", "once")
    assert once.returncode == 78
    assert not stranger.mark.exists()
    stranger.give(NOBODY)
    assert _as_nobody(home, "controller", "once").returncode == 0
    assert _wait_for(stranger.mark)


def test_an_object_store_names_no_owner(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.controller import trust
    from orchestrator.controller.run import open_entry
    from orchestrator.registry.store import RunEntry

    entry = RunEntry(
        run_id=RUN, name="x", backend="local", uri="memory://x", created_at=0.0, gpus=1
    )
    run = open_entry(desk.bench.registry, entry, SystemClock())
    assert trust.objection(run) is None, "entered by an earlier version, and acted upon since"
    trust.only_read(run)
    assert trust.objection(run) == "an object store does not say who wrote it"
    assert trust.objection(run, trust.Trusted(roots=("memory://x",))) is None
    trust.believe(run)
    assert trust.objection(run) is None


# --- whose hands


def test_owner_and_mode_of_folder_files_and_what_lies_between(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "submissions").mkdir(parents=True)
    file = folder / "submissions/1.json"
    file.write_text("{}")
    assert foreign_hands(folder, [file]) is None
    for path in (folder, folder / "submissions", file):
        mode = path.stat().st_mode
        os.chown(path, OTHER, 0)
        assert foreign_hands(folder, [file]) == f"{path} belongs to uid 12345"
        assert foreign_hands(folder, [file], [OTHER]) is None
        os.chown(path, 0, NOBODY)
        assert foreign_hands(folder, [file]) is None
        path.chmod(mode | 0o020)
        assert foreign_hands(folder, [file]) == f"group nogroup can write to {path}"
        path.chmod(mode | 0o002)
        assert foreign_hands(folder, [file]) == f"everybody can write to {path}"
        path.chmod(mode)
        os.chown(path, 0, 0)


@pytest.mark.parametrize("kind", ["access", "default"])
def test_an_acl_that_lets_somebody_write(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def acl(user_may: int, mask: int) -> bytes:
        nobody = 0xFFFFFFFF
        entries = [(1, 7, nobody), (2, user_may, OTHER), (4, 5, nobody), (16, mask, nobody),
                   (32, 5, nobody)]  # fmt: skip
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)

    try:
        os.setxattr(folder, f"system.posix_acl_{kind}", acl(7, 7))
    except OSError:
        pytest.skip("this file system has no ACLs")
    assert foreign_hands(folder) == f"the ACL of {folder} lets others write to it"
    assert foreign_hands(folder, [], [OTHER]) is None
    for harmless in (acl(5, 7), acl(7, 5)):
        os.setxattr(folder, f"system.posix_acl_{kind}", harmless)
        assert foreign_hands(folder) is None


def _as_nobody(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        [*drop, sys.executable, "-m", "orchestrator.cli", *argv],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1",
             "QVL_STATE_DIR": str(home / "state"), "PYTHONPATH": str(ROOT)},
        cwd="/", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def _wait_for(path: Path, seconds: float = 20.0) -> bool:
    clock = SystemClock()
    end = clock.monotonic() + seconds
    while not path.exists() and clock.monotonic() < end:
        clock.sleep(0.05)
    return path.exists()
