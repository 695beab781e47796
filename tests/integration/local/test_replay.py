"""`verify --replay` on the local backend, with the torch-free trainer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.services.replay import Replay
from orchestrator.domain import proof
from tests.integration.local.conftest import command


class Desk:
    """A person at the command line, in a folder with a job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = command(self.folder, *argv, QVL_FAKE_STEP_S="0.05")
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self(*argv, "--json", code=code).stdout)

    def runs(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "runs").iterdir())


@pytest.fixture
def desk(folder: Path) -> Desk:
    desk = Desk(folder)
    desk("submit", "job.yaml", "--wait")
    return desk


def test_a_run_computes_again_what_it_recorded(desk: Desk) -> None:
    before = desk.runs()
    answer = desk.json("verify", "digits", "--replay")
    replay = answer["replay"]
    assert answer["holds"]
    assert replay["holds"]
    assert (replay["first"], replay["last"]) == (15, 20)
    results = {check["name"]: check["result"] for check in replay["checks"]}
    assert results["losses"] == results["samples"] == "equal"
    assert results["optimizer state at step 20"] == results["adapter at step 20"] == "equal"
    assert desk.runs() == before  # the copy is gone
    assert len(desk.json("status")["runs"]) == 1


def test_from_the_beginning_and_no_further_than_asked(desk: Desk) -> None:
    said = desk("verify", "digits", "--replay", "--from", "0", "--steps", "3", "--keep")
    assert "replayed from the beginning to step 3\n" in said.stdout
    copy = next(name for name in desk.runs() if "-replay-" in name)
    assert desk.json("status", copy)["runs"][0]["state"] == "CANCELLED"


def test_a_record_that_was_altered_is_found(desk: Desk) -> None:
    altered = 0
    for path in (desk.folder / "runs").rglob("metrics/**/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row.get("step") == 18 and altered == 0:
                row["micro_losses"][0] = (float.fromhex(row["micro_losses"][0]) + 1e-12).hex()
                altered += 1
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert altered == 1
    answer = desk.json("verify", "digits", "--replay", code=73)
    assert not answer["replay"]["holds"]
    (wrong,) = [c for c in answer["replay"]["checks"] if c["result"] == "differs"]
    assert wrong["name"] == "losses"
    assert "at step 18" in wrong["detail"]
    assert len(desk.runs()) == 2  # the copy is kept to look at


def test_what_cannot_be_replayed_is_said(desk: Desk) -> None:
    done = desk("verify", "digits", "--replay", "--from", "20", code=78)
    assert "has recorded no step after 20" in done.stderr
    assert "--from" in desk("verify", "digits", "--from", "20", code=2).stderr
    done = desk("verify", "digits", "--replay", "--from", "7", code=73)
    assert "no checkpoint '7'" in done.stderr
    data = desk.folder / "train.json"
    data.write_text(data.read_text().replace('"0"', '"zero"', 1))
    done = desk("verify", "digits", "--replay", code=78)
    assert "is HELD" in done.stderr
    assert "training data" in done.stderr


def test_without_a_compared_step_nothing_is_held_to_be_proved() -> None:
    state = proof.Check("adapter", "equal")
    assert not Replay(run_id="r", first=5, last=9, checks=(state,)).holds
    samples = proof.Check("samples", "equal")
    assert Replay(run_id="r", first=5, last=9, checks=(state, samples)).holds
    differs = proof.Check("losses", "differs")
    assert not Replay(run_id="r", first=5, last=9, checks=(samples, differs)).holds
