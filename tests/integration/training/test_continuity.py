"""Real Q-LoRA that must not go on where it does not continue: each fault by its own check."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cli import main as cli
from orchestrator.operations.actions import resume
from orchestrator.run_directory.attempts import read_summary
from tests.harness.training import Disturbance, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]

PLANTED = {
    "rate": "learning rate after the load",
    "adapter": "trainable weights after the load",
    "random": "random states of rank 1 after the load",
    "order": "samples of step 7 on rank 1: the loader gives",
    "pictures": "of micro-batch 1 of step 7 on rank 1, the loss is",
}


def verified(run: TrainingRun, capsys: Any, *options: str) -> dict[str, Any]:
    """What `verify` answers; it must hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QVL_STATE_DIR", str(run.run.registry.state_dir))
        code = cli.main(["verify", run.run.run_id, "--json", *options])
    out, err = capsys.readouterr()
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out)
    return found


def test_planted_faults_hold_the_run_each_by_its_own_check(
    bench: TrainingBench, straight: TrainingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preempted within a step; then five attempts that do not continue it, and one."""
    plants = {str(n): fault for n, fault in enumerate(PLANTED, 2)}
    stopped = Disturbance("micro", 6, "SIGTERM", [0], 75, 6, micro=1)
    run = bench.disturbed(bench.job(), [stopped], QVL_PROBE_PLANT=json.dumps(plants))
    for attempt, (fault, words) in enumerate(PLANTED.items(), 2):
        end = run.finish()
        assert end.state == "HELD", (fault, end.row)
        (verdict,) = run.of_attempt(attempt, "verdict")
        assert (verdict["data"]["code"], verdict["data"]["reason"]) == (78, "contract")
        assert words in verdict["data"]["message"], fault
        assert run.committed_after(attempt) == 6
        resume(run.run)
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, *[78] * len(PLANTED), 0]
    assert_same_training(run, straight)
    assert_reproduced(run, attempt=len(PLANTED) + 2)
    assert_started(run, attempt=len(PLANTED) + 2)
    checks = verified(run, capsys)["attempts"][-1]["checks"]
    assert {c["result"] for c in checks} == {"equal"}
    assert len(checks) == 4 + 2 + 2


def test_a_replay_computes_to_the_bit_what_was_recorded(
    straight: TrainingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    replay = verified(straight, capsys, "--replay", "--steps", "3")["replay"]
    assert replay["holds"]
    assert 0 < replay["first"] < replay["last"]
    results = {c["name"]: c["result"] for c in replay["checks"]}
    assert set(results.values()) == {"equal"}, results
    assert {"adapter", "optimizer state", "random states", "samples", "losses"} <= set(results)


def assert_reproduced(run: TrainingRun, attempt: int) -> None:
    """The losses that the stop gave up were told by both ranks and computed again, to the bit."""
    told = {e["rank"]: e["data"] for e in run.of_attempt(1, "interrupted")}
    again = {e["rank"]: e["data"] for e in run.of_attempt(attempt, "reproduced")}
    assert set(told) == set(again) == {0, 1}
    for rank, data in again.items():
        computed = told[rank]["micro_batches"]
        assert (data["micro_batches"], data["apart"], data["tolerance"]) == (2, 0, 0)
        row = run.curve(rank)[7]
        assert [m["loss"] for m in computed] == list(row.micro_losses[:2])
        assert [i for m in computed for i in m["samples"]] == list(row.samples[:4])


def assert_started(run: TrainingRun, attempt: int) -> None:
    """Each stage up to the first step is timed: the helper's own, and those of every rank."""
    stages = run.of_attempt(attempt, "stage")
    helper = [e["data"]["stage"] for e in stages if e["rank"] is None]
    assert helper == ["claim", "contract", "checkpoint"]
    own = ["imports", "assigned", "base", "adapter", "engine", "restore", "training", "first step"]
    for rank in (0, 1):
        told = {e["data"]["stage"]: e["data"]["seconds"] for e in stages if e["rank"] == rank}
        assert list(told)[: len(own)] == own
        assert min(told["imports"], told["base"], told["first step"]) > 0
    summary = read_summary(run.storage)
    assert summary is not None
    assert set(summary.startup) == {*helper, *own}
    assert summary.startup["imports"] > summary.startup["training"]
