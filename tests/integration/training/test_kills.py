"""Real Q-LoRA without any notice: killed at random places, and what its next attempts find."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run_directory.attempts import read_start
from tests.harness.training import EVERY, STEPS, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]

SEED = 4
SCALARS = ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss")


def random_kills(chance: random.Random) -> list[dict[str, Any]]:
    """One kill an attempt: while it loads, then three times further and further on."""
    kills = [{"at": "load", "step": 0}]
    for first in (1, 7, 13):
        at = chance.choice(["fetch", "micro", "boundary", "save", "eval"])
        every = {"save": 4, "eval": 5}.get(at, 1)
        step = chance.choice([s for s in range(first, first + 6) if s % every == 0])
        kills.append({"at": at, "step": step})
        if at == "micro":
            kills[-1]["micro"] = chance.randrange(3)
    return [
        {**k, "attempt": n, "rank": chance.randrange(2), "signal": "SIGKILL", "to": "group"}
        for n, k in enumerate(kills, 1)
    ]


KILLS = random_kills(random.Random(SEED))
LAST = len(KILLS) + 1


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, training_data: Path) -> Iterator[TrainingRun]:
    """Agent, helper and ranks killed at once, four times; then left alone."""
    bench = TrainingBench(tmp_path_factory.mktemp("killed"), data=training_data)
    run = bench.probed(bench.lasting_job(), KILLS, QVL_PROBE_FAULTS=str(LAST))
    run.hurry()
    run.finish()
    yield run
    bench.close()


def test_killed_run_equals_the_undisturbed(killed: TrainingRun, straight: TrainingRun) -> None:
    end = killed.look()
    assert (end.state, end.row["attempt"], end.row["preemptions"]) == ("SUCCEEDED", LAST, 0)
    assert killed.verdicts() == [-1] * len(KILLS) + [0]
    assert_same_training(killed, straight, killed=True)


def test_less_than_two_intervals_are_lost(killed: TrainingRun) -> None:
    """One, and what was computed while the last save was on its way."""
    for kill in KILLS:
        committed = killed.committed_after(kill["attempt"]) or 0
        assert 0 <= kill["step"] - committed < 2 * EVERY, kill
        started = [e["data"]["step"] for e in killed.of_attempt(kill["attempt"], "save_started")]
        assert committed >= max([0, *started[:-1]]), "a save began before the last had ended"
        start = read_start(killed.storage, kill["attempt"] + 1)
        assert start is not None
        assert start.step == committed


def test_spoilt_state_is_refused_in_its_own_words(killed: TrainingRun) -> None:
    """Planted in the last attempt after each of six complete loads, on one rank of two."""
    folder = Path(killed.run.job().env["QVL_PROBE_OUT"])
    ours, other = (json.loads((folder / f"faults-{rank}.json").read_text()) for rank in (1, 0))
    step = killed.committed_after(LAST - 1)
    assert step
    assert {name: refusal and refusal.split(" after the load:")[0] for name, refusal in ours} == {
        "adapter tensor": "trainable weights",
        "optimizer moments": "optimizer state of rank 1",
        "master weights": "optimizer state of rank 1",
        "learning rate": "learning rate",
        "schedule": f"learning rate of the schedule at step {step + 1}",
        "random states": "random states of rank 1",
    }
    assert [refusal for _, refusal in other] == [None] * len(ours)


def test_tensorboard_shows_one_curve(killed: TrainingRun, straight: TrainingRun) -> None:
    assert scalars(killed) == scalars(straight)
    assert [step for step, _ in scalars(killed)["train/loss"]] == list(range(1, STEPS + 1))


def scalars(run: TrainingRun) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads the run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.directory / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in SCALARS}
