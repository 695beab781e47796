"""Runs of an earlier commit are read, resumed and cancelled; its agents and controllers get on
with those of today.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical, loads
from orchestrator.errors import NewerVersion
from orchestrator.operations.actions import cancel
from orchestrator.operations.repair import examine
from orchestrator.run_directory import attempts
from orchestrator.storage.opening import open_storage
from tests.harness.kept import OLD_FAKE, Kept, interpreter, old_code
from tests.harness.runs import ROOT, Bench, Driven


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def sealed(run: Driven, path: str) -> bool:
    return "sealed" in loads(run.storage.get(path))


@pytest.mark.parametrize(("name", "state"), [("finished", "SUCCEEDED"), ("cancelled", "CANCELLED")])
def test_an_ended_run_is_read(kept: Kept, name: str, state: str) -> None:
    run = kept.run(name)
    assert run.look().state == state
    assert not sealed(run, layout.claim(1)), "it is of the earlier commit"
    found = examine(run.run)
    assert (found.log_fault, found.damage, found.damaged) == ("", "", ())


@pytest.mark.parametrize("name", ["preempted", "killed", "unfenced"])
def test_a_run_goes_on_as_if_it_had_always_been_ours(kept: Kept, name: str) -> None:
    run = kept.run(name)
    run.hurry()
    assert examine(run.run).log_fault == ""
    newest = max(step for _, step, _ in run.commits())
    assert run.drive().state == "SUCCEEDED"
    assert run.events("resuming")[0]["data"]["step"] == newest
    assert sealed(run, layout.claim(attempts.attempt_numbers(run.storage)[-1]))
    assert run.outcome() == kept.run("finished").outcome()


def test_a_run_is_cancelled(kept: Kept) -> None:
    run = kept.run("preempted")
    assert cancel(run.run)
    assert run.drive().state == "CANCELLED"


@pytest.mark.parametrize(
    "path",
    [
        layout.RESOLVED,
        layout.SUMMARY,
        layout.submission(1),
        layout.submission_id(1),
        layout.claim(1),
        layout.slot(1, 0),
        layout.stop(1, 0, 1),
        layout.verdict(1, 0),
        layout.start_point(1),
    ],
)
def test_what_a_later_version_wrote_is_refused_by_name(kept: Kept, path: str) -> None:
    run = kept.run("preempted")
    value = loads(run.storage.get(path))
    run.storage.put(path, canonical({**value, "schema": 9}))
    with pytest.raises(NewerVersion, match=f"{path} was made by a newer version") as found:
        run.look()
    assert found.value.exit_code == 78
    assert "\n" not in found.value.message


# --- versions that meet


def test_an_old_agent_under_a_new_controller(bench: Bench, tmp_path: Path) -> None:
    python = interpreter(tmp_path / "old", old_code(tmp_path / "code"))
    todays, bench.module = bench.module, OLD_FAKE
    run = bench.submit(replace(bench.job(), python=str(python)), step_s=0.05)
    run.until_step(7)
    run.notify("SIGTERM")
    run.until_attempt(2)
    assert run.drive().state == "SUCCEEDED"
    assert sealed(run, layout.submission(2))
    assert not sealed(run, layout.claim(2))
    bench.module = todays
    calm = bench.submit()
    calm.drive()
    assert run.outcome() == calm.outcome()


def test_a_new_agent_under_an_old_controller(folder: Path, tmp_path: Path) -> None:
    old = old_code(tmp_path / "code")
    python = interpreter(tmp_path / "new", ROOT)
    with (folder / "job.yaml").open("a") as job:
        job.write(f"python: {python}\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrator.cli", "submit", "job.yaml", "--wait", "--json"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(old),
            "QVL_STATE_DIR": str(folder / "state"),
            "QVL_TRAINER_MODULE": "trainer.testing.fake",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    storage = open_storage(str(folder / "runs" / answer["run_id"]))
    assert "sealed" not in loads(storage.get(layout.submission(1)))
    assert "sealed" in loads(storage.get(layout.claim(1)))
    assert storage.get(layout.DONE)
