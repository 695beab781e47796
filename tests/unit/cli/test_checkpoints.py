"""`checkpoints` and its subcommands, on run directories made by hand."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as entry
from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.operations import checkpoints as keeping
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from tests.harness.jobs import job
from tests.unit.cli.shells import RUN, Built, Shell
from tests.unit.run_directory import fakes


@pytest.fixture
def saved(run: Built) -> Built:
    """Steps 5, 10 of attempt 1 and 15, 20 of attempt 2; the job keeps two."""
    for attempt, steps in ((1, (5, 10)), (2, (15, 20))):
        run.log.append("fence", attempt)
        for step in steps:
            fakes.commit(run.storage, run.log, step, attempt=attempt, facts={"gpu": "none"})
    run.storage.put(layout.RESOLVED, canonical(to_json(job(Path("/data")))))
    return run


def folder(run: Built, attempt: int, step: int) -> Path:
    return Path(run.storage.uri, layout.checkpoint_dir(attempt, step))


def steps(run: Built) -> list[int]:
    live = checkpoints.live_commits(RunLog(run.storage).read())
    return [r.commit().step for r in live]


@pytest.mark.parametrize("argv", [["list", RUN], [RUN], ["--json", RUN]])
def test_a_run_alone_is_listed(shell: Shell, saved: Built, argv: list[str]) -> None:
    found = shell.json("checkpoints", *[a for a in argv if a != "--json"])
    assert [(row["step"], row["attempt"]) for row in found] == [(5, 1), (10, 1), (15, 2), (20, 2)]
    assert set(found[0]) == {
        "step", "attempt", "path", "state", "size_bytes", "adapter_sha256",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["list", "verify", "inspect", "pull", "prune"])
def test_every_subcommand_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["checkpoints", name, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"qvl-orchestrate checkpoints {name} digits" in page.split("Example", 1)[1]
    assert "--json" in page


# --- verify


def test_verify_is_also_an_option_of_list(shell: Shell, saved: Built) -> None:
    (folder(saved, 1, 10) / "latest").write_bytes(b"?")
    (folder(saved, 2, 15) / "notes.txt").write_bytes(b"?")
    one = shell.json("checkpoints", "verify", RUN, code=73)
    assert f"error: {layout.checkpoint_dir(1, 10)}/latest has 1 bytes instead of" in shell.err
    assert f"warning: {layout.checkpoint_dir(2, 15)}/notes.txt belongs to no" in shell.err
    assert one == shell.json("checkpoints", RUN, "--verify", code=73)
    assert [row["verified"] for row in one] == [True, False, True, True]
    # these manifests, unlike those of a trainer, do not name the parts
    extra = [[n for n in row.get("extra_files", ()) if "parts/" not in n] for row in one]
    assert extra == [[], [], ["notes.txt"], []]


def test_verify_of_some_steps_reads_no_others(shell: Shell, saved: Built) -> None:
    (folder(saved, 1, 10) / "latest").write_bytes(b"?")
    found = shell.json("checkpoints", "verify", RUN, "5", "20")
    assert [(row["step"], row["verified"]) for row in found] == [(5, True), (20, True)]
    shell("checkpoints", "verify", RUN, "10", code=73)
    shell("checkpoints", "verify", RUN, "7", code=73)
    assert "error: no checkpoint of step 7\n  hint: committed steps: 5, 10, 15, 20" in shell.err


def test_verify_changes_nothing(shell: Shell, saved: Built) -> None:
    (folder(saved, 1, 10) / "latest").write_bytes(b"?")
    before = fakes.snapshot(saved.storage)
    shell("checkpoints", "verify", RUN, code=73)
    assert fakes.snapshot(saved.storage) == before


def test_a_checkpoint_on_a_nodes_own_disk_is_not_called_damaged(shell: Shell, saved: Built) -> None:
    directory, manifest, digest = fakes.write(saved.storage, 30, attempt=2)
    checkpoints.commit(saved.log, 2, manifest, directory, digest, node="n1")
    checkpoints.remove_files(saved.storage, directory)
    found = shell.json("checkpoints", "verify", RUN)
    assert found[-1]["verified"] is None


# --- inspect


def test_inspect(shell: Shell, saved: Built) -> None:
    found = shell.json("checkpoints", "inspect", RUN, "15")
    assert (found["step"], found["attempt"], found["state"]) == (15, 2, "committed")
    assert found["manifest"]["facts"] == {"gpu": "none"}
    assert sum(found["sizes"].values()) == found["size_bytes"]
    assert found["sizes"]["optimizer"] == sum(
        len(v) for k, v in fakes.contents(2, 15).items() if "optim_states" in k
    )
    text = shell("checkpoints", "inspect", RUN)
    assert text.splitlines()[0].startswith("step ")
    assert "20 (epoch 0, 24 samples)" in text
    assert "gpu" in text


@pytest.mark.parametrize(
    ("step", "code", "text"),
    [
        ("7", 73, "no checkpoint of step 7"),
        ("newest", 2, "'newest' is neither a step nor `latest`"),
        ("²", 2, "is neither a step"),
        ("5", 73, "no checkpoint of step 5 any more: retired (keep_last)"),
        ("10", 73, "no checkpoint of step 10 any more: bad (a flip)"),
    ],
)
@pytest.mark.parametrize("name", ["inspect", "pull"])
def test_steps_that_are_not_there(
    shell: Shell, saved: Built, tmp_path: Path, name: str, step: str, code: int, text: str
) -> None:
    five, ten = checkpoints.live_commits(saved.log.read())[:2]
    checkpoints.retire(saved.storage, saved.log, 2, five, "keep_last")
    checkpoints.mark_bad(saved.log, 2, ten, "a flip")
    more = [str(tmp_path / "out")] if name == "pull" else []
    shell("checkpoints", name, RUN, step, *more, code=code)
    assert text in shell.err
    assert not (tmp_path / "out").exists()


def test_a_damaged_manifest_is_73(shell: Shell, saved: Built) -> None:
    (folder(saved, 2, 20) / "manifest.json").write_bytes(b"{}")
    shell("checkpoints", "inspect", RUN, code=73)
    assert "manifest.json differs from what was committed" in shell.err


# --- pull


def test_pull(shell: Shell, saved: Built, tmp_path: Path) -> None:
    (folder(saved, 2, 20) / "notes.txt").write_bytes(b"not part of it")
    found = shell.json("checkpoints", "pull", RUN, "latest", str(tmp_path / "a" / "b"))
    copy = tmp_path / "a" / "b" / "checkpoint-20"
    assert found["copy"] == str(copy)
    there = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    manifest = there.pop("manifest.json")
    assert manifest == (folder(saved, 2, 20) / "manifest.json").read_bytes()
    assert there == fakes.contents(2, 20)
    assert os.listdir(copy.parent) == ["checkpoint-20"]


def test_pull_of_a_damaged_one_leaves_nothing(shell: Shell, saved: Built, tmp_path: Path) -> None:
    (folder(saved, 2, 20) / "scheduler.pt").write_bytes(b"?")
    shell("checkpoints", "pull", RUN, "20", str(tmp_path / "out"), code=73)
    assert "scheduler.pt has 1 bytes instead of" in shell.err
    assert os.listdir(tmp_path / "out") == []


def test_pull_replaces_nothing(shell: Shell, saved: Built, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-20").mkdir()
    shell("checkpoints", "pull", RUN, "20", str(tmp_path), code=78)
    assert "checkpoint-20 exists" in shell.err


def test_pull_that_is_cut_off_leaves_no_name(
    shell: Shell, saved: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "_sync", cut)
    shell("checkpoints", "pull", RUN, "20", str(tmp_path / "out"), code=130)
    assert os.listdir(tmp_path / "out") == []


def test_pull_where_nothing_can_be_written(shell: Shell, saved: Built, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shell("checkpoints", "pull", RUN, "20", str(tmp_path / "file" / "out"), code=78)
    assert "file/out: " in shell.err


def test_a_step_that_two_attempts_saved(shell: Shell, saved: Built, tmp_path: Path) -> None:
    fakes.commit(saved.storage, saved.log, 10, attempt=2)
    assert shell.json("checkpoints", "inspect", RUN, "10")["attempt"] == 2
    assert shell.json("checkpoints", "inspect", RUN, "10", "--attempt", "1")["attempt"] == 1


# --- prune


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "is_live", lambda _: False)


def litter(run: Built) -> None:
    """Half a checkpoint and a temporary file of attempt 1, which attempt 2 has replaced."""
    fakes.write(run.storage, 12, attempt=1)
    (folder(run, 1, 12) / ".tmp-0123").write_bytes(b"half")
    fakes.write(run.storage, 25, attempt=2)


def test_prune_dry_run_changes_nothing(shell: Shell, saved: Built) -> None:
    litter(saved)
    before = fakes.snapshot(saved.storage)
    found = shell.json("checkpoints", "prune", RUN, "--dry-run")
    assert fakes.snapshot(saved.storage) == before
    assert (folder(saved, 1, 12) / ".tmp-0123").exists()
    assert [row["step"] for row in found["checkpoints"]] == [5, 10]
    assert [left["path"] for left in found["leftovers"]] == [layout.checkpoint_dir(1, 12)]
    assert found["half_written"] == [f"{layout.checkpoint_dir(1, 12)}/.tmp-0123"]
    sizes = [row["size_bytes"] for row in found["checkpoints"]]
    assert found["size_bytes"] == sum(sizes) + found["leftovers"][0]["size_bytes"]


def test_prune(shell: Shell, saved: Built, ended: None) -> None:
    litter(saved)
    text = shell("checkpoints", "prune", RUN, "--keep", "1")
    assert "freed " in text.splitlines()[-1]
    assert steps(saved) == [20]
    assert not folder(saved, 1, 12).exists()
    assert folder(saved, 2, 25).exists(), "the newest attempt may still be writing"
    assert not folder(saved, 2, 15).exists()
    again = shell.json("checkpoints", "prune", RUN, "--keep", "1")
    assert (again["checkpoints"], again["leftovers"], again["size_bytes"]) == ([], [], 0)
    shell("checkpoints", "verify", RUN)


def test_prune_never_removes_the_last_good_one(shell: Shell, saved: Built, ended: None) -> None:
    (folder(saved, 2, 20) / "latest").write_bytes(b"?")
    shell("checkpoints", "prune", RUN, "--keep", "1", code=73)
    assert steps(saved) == [5, 10, 15, 20]
    shell("checkpoints", "prune", RUN, "--keep", "0", code=2)


def test_prune_with_a_damaged_log(shell: Shell, saved: Built, ended: None) -> None:
    saved.storage.put(layout.log_record(2), b"?")
    before = fakes.snapshot(saved.storage)
    shell("checkpoints", "prune", RUN, code=73)
    assert "record 2 of the run's log cannot be read; nothing is deleted" in shell.err
    assert fakes.snapshot(saved.storage) == before


def test_prune_of_a_run_at_work_is_refused(
    shell: Shell, saved: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "is_live", lambda _: True)
    shell("checkpoints", "prune", RUN, code=78)
    assert f"run {RUN} is at work and removes its old checkpoints itself" in shell.err
    assert steps(saved) == [5, 10, 15, 20]


def test_prune_that_a_new_attempt_overtakes(
    shell: Shell, saved: Built, ended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keeping.surplus

    def slow(*args: Any) -> Any:
        found = real(*args)
        monkeypatch.setattr(keeping.RunLog, "read", read)
        return found

    original = RunLog.read

    def read(log: RunLog) -> Any:
        view = original(log)
        monkeypatch.setattr(keeping.RunLog, "read", original)
        RunLog(saved.storage).append("fence", 3)
        return view

    monkeypatch.setattr(keeping, "surplus", slow)
    shell("checkpoints", "prune", RUN, code=78)
    assert "has begun to work again" in shell.err
    assert steps(saved) == [5, 10, 15, 20]


def test_hostile_names_cannot_leave_the_folder(shell: Shell, saved: Built, tmp_path: Path) -> None:
    """A manifest and a commit that whoever owns the run directory has made."""
    directory, manifest, _ = fakes.write(saved.storage, 30, attempt=2)
    evil = replace(manifest.files[0], path="../../../evil")
    data = json.dumps(to_json(replace(manifest, files=(evil,)))).encode()
    saved.storage.put(f"{directory}/manifest.json", data)
    from orchestrator.storage.hashing import hash_bytes

    checkpoints.commit(saved.log, 2, manifest, directory, hash_bytes(data))
    shell("checkpoints", "pull", RUN, "30", str(tmp_path / "out"), code=73)
    assert list(tmp_path.rglob("evil")) == []
