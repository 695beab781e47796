"""Half-way states of the registry: what failed leaves nothing, what is gone can be removed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import JobRef
from orchestrator.backends.local import backend
from orchestrator.contract import layout
from orchestrator.controller import loop, reconcile
from orchestrator.controller.status_rows import job_of
from orchestrator.errors import StorageError, Unreachable, UserError
from orchestrator.operations import submit
from orchestrator.registry.store import RunEntry
from orchestrator.storage.posix import PosixStorage
from tests.unit.cli.shells import JOB, RUN, T0, Built, Desk, Shell

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


# --- a submit that fails --------------------------------------------------------------------


def left_of(desk: Desk) -> list[Path]:
    """Run directories and secrets that are there."""
    found = list((desk.bench.folder / "runs").glob("*"))
    return [*found, *(desk.bench.registry.state_dir / "secrets").glob("*")]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (UserError("Slurm refuses the job: invalid partition"), 78),
        (Unreachable("sbatch: nobody answers"), 69),
        (OSError(28, "No space left on device", "/somewhere"), 69),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_submit_that_fails_leaves_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    desk.job.write_text(JOB + "secrets: [MY_TOKEN]\n")
    monkeypatch.setenv("MY_TOKEN", "secret-value")
    first = desk.submit()
    before = left_of(desk)
    assert len(before) == 2

    def refuse(*_: object) -> str:
        raise fault

    monkeypatch.setattr(backend.LocalBackend, "submit", refuse)
    desk("submit", str(desk.job), code=code)
    assert "internal error" not in desk.err
    assert desk.bench.registry.find("digits").run_id == first
    assert left_of(desk) == before
    desk("cancel", "digits")


def test_an_interpreter_that_cannot_be_started_leaves_nothing(desk: Desk) -> None:
    python = desk.bench.folder / "python"
    python.write_bytes(b"\x7fno program\n")
    python.chmod(0o755)
    desk("submit", str(desk.job), "--set", f"python={python}", code=78)
    assert f"{python} cannot be started" in desk.err
    assert desk.json("status") == {"runs": []}
    assert left_of(desk) == []


@pytest.mark.parametrize("verb", ["create", "put"])
def test_a_storage_that_fails_on_the_way_leaves_no_entry(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    real = getattr(PosixStorage, verb)

    def failing(self: PosixStorage, path: str, data: bytes) -> object:
        if path in (layout.submission(1), layout.RESOLVED):
            raise StorageError(f"{path}: No space left on device")
        return real(self, path, data)

    monkeypatch.setattr(PosixStorage, verb, failing)
    desk("submit", str(desk.job), code=69)
    assert desk.json("status") == {"runs": []}
    assert left_of(desk) == []


def test_a_job_that_was_handed_over_all_the_same_ends_by_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its submitter got no answer and took everything back."""
    real = reconcile.hand_over

    def lost(*submission: Any) -> str:
        real(*submission)
        raise Unreachable("the answer was lost")

    monkeypatch.setattr(submit, "hand_over", lost)
    desk("submit", str(desk.job), code=69)
    assert desk.json("status") == {"runs": []}
    (job,) = (desk.bench.registry.state_dir / "jobs").iterdir()
    local = backend.LocalBackend(desk.bench.registry.state_dir)
    identifier = JobRef((job / "id").read_text(), job.name)
    desk.eventually(lambda: local.observe([identifier])[identifier].phase == "gone")
    # Its last words, at most: nothing was claimed.
    words = [p for folder in left_of(desk) for p in folder.rglob("*") if p.is_file()]
    assert [p for p in words if "arrivals" not in p.parts] == []


# --- a directory that is gone, or damaged ---------------------------------------------------


def test_a_run_whose_directory_is_gone_is_shown_so_and_can_be_removed(
    shell: Shell, run: Built
) -> None:
    run.held(state="SUCCEEDED", next=None)
    assert shell.json("status")["runs"][0]["last_checkpoint"]["step"] == 10
    folder = Path(run.storage.uri)
    shutil.rmtree(folder)
    (row,) = shell.json("status")["runs"]
    assert row["last_checkpoint"] is None
    assert row["reason"] == "gone"
    text = shell("status")
    assert "10 ✓" not in text
    assert f"{folder} is gone; `qvl-orchestrate rm {RUN}` forgets the run" in text
    for argv in (["logs"], ["events"], ["export"], ["resume"], ["checkpoints"], ["preempt"]):
        more = ["./new"] if argv == ["export"] else []
        shell(*argv, RUN, *more, code=69)
        assert f"the directory of run {RUN} is gone: {folder}" in shell.err
    shell("rm", RUN, "--yes", "--keep-adapter", str(folder.parent / "kept"), code=73)
    assert "was gone already" in shell("rm", RUN, "--yes")
    assert shell.json("status") == {"runs": []}
    assert not folder.exists()


def test_a_damaged_run_can_be_removed(shell: Shell, run: Built) -> None:
    run.held()
    folder = Path(run.storage.uri)
    (folder / layout.RESOLVED).unlink()
    shell("rm", RUN, "--yes")
    assert not folder.exists()
    assert shell.json("status") == {"runs": []}


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_job_at_work_on_a_lost_directory_is_cancelled_first(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.15")
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    run_id = desk.submit()
    desk("controller", "once")
    desk.until(run_id, step=1)
    entry = desk.bench.registry.find(run_id)
    folder = Path(entry.uri)
    if damage == "gone":
        desk.bench.registry.add(replace(entry, uri=str(desk.bench.folder / "elsewhere")))
    else:
        (folder / layout.RESOLVED).write_text("{")
    desk("rm", run_id, "--yes", code=78)
    assert f"first `qvl-orchestrate cancel {run_id}`" in desk.err
    assert desk.json("cancel", run_id)["state"] in ("CANCELLING", "CANCELLED")
    job = job_of(entry.row or {})
    assert job is not None
    local = backend.LocalBackend(desk.bench.registry.state_dir)
    desk.eventually(lambda: local.observe([job])[job].phase == "gone")
    desk("rm", run_id, "--yes")
    assert desk.json("status") == {"runs": []}
    assert folder.exists() == (damage == "gone")
    assert not (desk.bench.folder / "elsewhere").exists()


# --- names that several runs have -----------------------------------------------------------


def several(run: Built, *states: str) -> list[str]:
    """Runs of one name, the first the oldest."""
    for number, state in enumerate(states):
        entry = RunEntry(
            run_id=f"twice-{number}",
            name="twice",
            backend="local",
            uri=run.storage.uri,
            created_at=T0 + number,
            gpus=1,
        )
        run.registry.add(entry)
        final = state in ("SUCCEEDED", "FAILED", "CANCELLED")
        run.registry.saw(entry.run_id, {"state": state}, final=final, at=T0)
    return [f"twice-{number}" for number in range(len(states))]


@pytest.mark.parametrize(
    "argv",
    ["rm twice --yes", "cancel twice", "preempt twice", "checkpoints prune twice",
     "resume twice --restart-from scratch"],
)  # fmt: skip
def test_what_cannot_be_undone_wants_one_run(shell: Shell, run: Built, argv: str) -> None:
    several(run, "HELD", "HELD", "HELD")
    shell(*argv.split(), code=2)
    assert "3 runs are called 'twice': twice-2 (HELD), twice-1 (HELD), twice-0 (HELD)" in shell.err
    assert "give the id of the run" in shell.err
    assert len(shell.json("status", "twice-0", "twice-1", "twice-2")["runs"]) == 3
    assert Path(run.storage.uri).is_dir()


def test_a_cancel_means_the_one_that_has_not_ended(shell: Shell, run: Built) -> None:
    several(run, "FAILED", "HELD", "SUCCEEDED")
    assert shell.json("cancel", "twice")["run_id"] == "twice-1"
    assert "twice-2 has ended already" in shell("cancel", "twice")


def test_nothing_is_no_run(shell: Shell, run: Built) -> None:
    """As where a shell variable is not set."""
    shell("rm", "", "--yes", code=3)
    assert Path(run.storage.uri).is_dir()
