"""What would be refused on the node is refused before the queue, and says so in seconds."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.services import tool
from orchestrator.clock import SystemClock
from orchestrator.contract.resolved import DataSpec
from orchestrator.controller import loop, status_rows
from orchestrator.controller.run import Run
from orchestrator.domain.decide import Fail
from orchestrator.errors import UserError
from orchestrator.operations import preflight
from tests.harness.clock import FakeClock
from tests.harness.runs import Bench
from tests.unit.cli.shells import JOB, Desk

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
PICTURES = 640


def with_pictures(folder: Path, there: int) -> Path:
    """An index of pictures, of which the first `there` exist; its path."""
    index = folder / "pictures.json"
    names = [f"p/{i}.png" for i in range(PICTURES)]
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "1"}]
    index.write_text(json.dumps([{"image": name, "conversations": turns} for name in names]))
    (folder / "p").mkdir(exist_ok=True)
    for name in names[:there]:
        (folder / name).write_bytes(b"x")
    return index


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["submit", "dry-run"])
def test_pictures_that_are_all_missing(desk: Desk, more: list[str]) -> None:
    index = with_pictures(desk.bench.folder, 0)
    begun = time.monotonic()
    desk("submit", str(desk.job), "--set", f"data.train={index}", *more, code=78)
    assert time.monotonic() - begun < 5
    assert "data.train: 64 of 64 pictures that were looked for are missing" in desk.err
    assert "`qvl-orchestrate data check job.yaml` names them all" in desk.err
    assert not (desk.bench.folder / "runs").exists()


def test_a_few_missing_pictures_are_the_policys_business(desk: Desk) -> None:
    index = with_pictures(desk.bench.folder, PICTURES - 30)
    given = ["submit", str(desk.job), "--dry-run", "--set", f"data.train={index}"]
    desk(*given)
    desk(*given, "--set", "data.policy=stop", code=78)
    assert "of 64 pictures that were looked for are missing" in desk.err


def test_at_resume_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.15")
    index = with_pictures(desk.bench.folder, PICTURES)
    run_id = desk.submit("--set", f"data.train={index}")
    desk.until(run_id, step=1)
    desk("cancel", run_id)
    desk.until(run_id, state="CANCELLED")
    shutil.rmtree(desk.bench.folder / "p")
    desk("resume", run_id, code=78)
    assert "64 of 64 pictures" in desk.err
    assert desk.row(run_id)["state"] == "CANCELLED"
    empty = desk.bench.folder / "empty"
    empty.mkdir()
    for more in (["--from", str(empty)], ["--from", str(empty), "--restart-from", "weights"]):
        desk("resume", run_id, *more, code=73)
        assert "is missing" in desk.err
    desk("resume", run_id, "--from", str(desk.bench.folder / "none"), code=73)


def test_secrets_and_the_storage_are_known_in_a_dry_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.job.write_text(JOB + "secrets: [MY_TOKEN]\n")
    desk("submit", str(desk.job), "--dry-run", code=78)
    assert "secrets not set in this shell: MY_TOKEN" in desk.err
    monkeypatch.setenv("MY_TOKEN", "x" * 8)
    desk("submit", str(desk.job), "--dry-run")
    file = desk.bench.folder / "file"
    file.write_text("")
    desk("submit", str(desk.job), "--dry-run", "--set", f"checkpoint.uri={file}/runs", code=78)
    assert f"checkpoint.uri: {file} is no folder" in desk.err
    monkeypatch.setattr(preflight.os, "access", lambda path, *_: Path(path).is_file())
    desk("submit", str(desk.job), "--dry-run", code=78)
    assert "nothing can be written to" in desk.err


def test_what_only_the_node_sees_is_named(tmp_path: Path) -> None:
    job = Bench(tmp_path / "bench").job(backend="kubernetes")
    pods = replace(job, data=DataSpec(train="/data/of/the/claim.json"))
    assert list(preflight.check_data(pods, SystemClock())) == [
        "data.train: /data/of/the/claim.json is seen by the pods only"
    ]
    with pytest.raises(UserError, match="No such file"):
        list(preflight.check_data(replace(pods, backend="slurm"), SystemClock()))
    index = tmp_path / "index.json"
    index.write_text(json.dumps([{"image": "/scratch/of/the/node/1.png"}] * 3))
    slurm = replace(job, backend="slurm", data=DataSpec(train=str(index)))
    assert list(preflight.check_data(slurm, SystemClock())) == [
        "data.train: /scratch/of/the/node is not seen from here"
    ]


def test_after_a_failure_of_the_data_comes_data_check(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    entry = desk.bench.registry.find(desk.submit())
    run = Run(entry, desk.bench.registry, None, None, FakeClock(0.0))  # type: ignore[arg-type]
    said = status_rows._next(run, Fail("data", "train.json: record 3: missing"))
    assert said == f"qvl-orchestrate data check --run {entry.run_id}"
    desk("cancel", entry.run_id)
    asked: list[Any] = []

    def answer(name: str, request: dict[str, Any], **_: Any) -> dict[str, Any]:
        asked.append((name, request["train"]))
        return {"counts": {"faults": 0, "warnings": 0}}

    monkeypatch.setattr(tool, "run_tool", answer)
    desk(*shlex.split(said)[1:], "--json")
    assert asked == [("datacheck", str(desk.bench.folder / "train.json"))]
