"""`verify` on run directories made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contract import layout, proof
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import Interrupted, MicroBatch
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.contract.spec import StartPoint
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.segments import SegmentWriter
from tests.unit.cli.shells import RUN, Built, Shell


def lines(run: Built, folder: str, *values: Any) -> None:
    writer = SegmentWriter(run.storage, folder)
    for value in values:
        writer.add(to_json(value))
    writer.flush()


def metrics(run: Built, attempt: int, rank: int, *steps: int, shift: int = 0) -> None:
    rows = [
        StepMetrics(
            step=step, attempt=attempt, loss=1.0, loss_hex="0x1p+0", learning_rate=0.0,
            grad_norm=None, time="", samples=(10 * step + rank + shift,),
            micro_losses=((step + rank / 2).hex(),),
        )
        for step in steps
    ]  # fmt: skip
    lines(run, layout.metrics(attempt, rank), *rows)


def event(kind: str, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "data": data}


def began(run: Built, attempt: int, start: StartPoint) -> None:
    run.storage.put(layout.start_point(attempt), canonical(to_json(start)))


@pytest.fixture
def interrupted(run: Built) -> Built:
    """Stopped in step 3 after a save of step 2, and finished by a second attempt."""
    run.claim(1)
    run.log.append("fence", 1)
    began(run, 1, StartPoint(kind="fresh"))
    record = run.checkpoint(1, 2)
    run.claim(2)
    run.log.append("fence", 2)
    began(run, 2, StartPoint(kind="checkpoint", step=2, commit_seq=record.seq))
    body = record.commit()
    told = proof.of_manifest(
        checkpoints.read_manifest(run.storage, body.directory, body.manifest_hash)
    )
    resumed = event(
        "resumed", step=2, schedule_hex=told["learning_rate"], recorded=told, found=told
    )
    lines(run, layout.attempt_events(2, "node-0"), resumed)
    stops = [
        Interrupted(
            attempt=1, rank=rank, step=2, conditions="",
            micro_batches=(MicroBatch(samples=(30 + rank,), loss=(3 + rank / 2).hex()),),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    events = [
        event("data", steps_per_epoch=4),
        *(event("interrupted", **to_json(s)) for s in stops),
    ]
    lines(run, layout.attempt_events(1, "node-0"), *events)
    for rank in (0, 1):
        metrics(run, 1, rank, 1, 2)
    return run


def test_a_run_without_interruption(shell: Shell, run: Built) -> None:
    answer = shell.json("verify", RUN)
    assert (answer["holds"], answer["attempts"]) == (True, [])
    assert shell("verify", RUN).splitlines()[-1].startswith("never interrupted")


def test_one_training(shell: Shell, interrupted: Built) -> None:
    for rank in (0, 1):
        metrics(interrupted, 2, rank, 3, 4)
    answer = shell.json("verify", RUN)
    (attempt,) = answer["attempts"]
    assert (answer["holds"], attempt["attempt"], attempt["step"]) == (True, 2, 2)
    found = {check["name"]: check["result"] for check in attempt["checks"]}
    assert set(found.values()) == {"equal"}
    assert sum("interrupted" in name for name in found) == 2
    text = shell("verify", RUN).splitlines()
    assert text[0] == f"{RUN}: losses are compared bit for bit"
    assert text[-1] == "one training: nothing that was compared differs"


def test_what_differs_is_said_and_ends_with_73(shell: Shell, interrupted: Built) -> None:
    metrics(interrupted, 2, 0, 3, 4)
    metrics(interrupted, 2, 1, 3, 4, shift=5)
    answer = shell.json("verify", RUN, code=73)
    assert not answer["holds"]
    wrong = [c for c in answer["attempts"][0]["checks"] if c["result"] == "differs"]
    assert [c["name"] for c in wrong] == ["interrupted micro-batches of attempt 1, rank 1"]
    assert "samples are [36], they were [31]" in wrong[0]["detail"]
    assert "NOT one training" in shell("verify", RUN, code=73)
