"""Real Q-LoRA, preempted in every way and finished: the same bits as the undisturbed run.

Each run suffers one disturbance an attempt. All three signals reach one rank, all ranks, the
agent, and the whole process group.
"""

from __future__ import annotations

import pytest

from tests.harness.training import Disturbance, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]

BOTH = (0, 1)
AGAIN = {"at": "save", "step": 9, "rank": 0, "signal": "SIGUSR1"}

IN_PROCESS = [
    Disturbance("fetch", 0, "SIGTERM", [1], 76, None),
    Disturbance("micro", 2, "SIGUSR1", BOTH, 75, 2, micro=1),
    Disturbance("eval", 5, "SIGUSR2", "agent", 75, 5),
    Disturbance("save", 8, "SIGTERM", "group", 75, 8),
    Disturbance("micro", 9, "SIGTERM", "agent", 75, 9, micro=0, also=(AGAIN,)),
    Disturbance("boundary", 11, "SIGUSR1", "group", 75, 11),
]
"""Samples are read in the rank itself."""

WITH_WORKERS = [
    Disturbance("load", 0, "SIGTERM", "agent", 76, None),
    Disturbance("fetch", 1, "SIGTERM", BOTH, 75, 1),
    Disturbance("micro", 6, "SIGUSR2", [1], 75, 7, micro=2),
    Disturbance("save", 8, "SIGUSR1", [1], 75, 8),
    Disturbance("eval", 10, "SIGUSR2", "group", 75, 10),
    Disturbance("boundary", 13, "SIGUSR1", "agent", 75, 13),
    Disturbance("eval", 20, "SIGUSR2", BOTH, 75, 20),
]
"""Two DataLoader workers a rank. The last micro-batch of a step completes it."""


@pytest.mark.parametrize(
    ("workers", "course"), [(0, IN_PROCESS), (2, WITH_WORKERS)], ids=["in process", "two workers"]
)
def test_preempted_run_equals_the_undisturbed(
    bench: TrainingBench, straight: TrainingRun, workers: int, course: list[Disturbance]
) -> None:
    job = bench.job(training={"dataloader_num_workers": workers})
    run = bench.disturbed(job, course)
    end = run.finish()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", len(course) + 1)
    assert (end.row["preemptions"], end.row["lost_steps"]) == (len(course), 0)
    assert run.verdicts() == [*(d.code for d in course), 0]
    for number, disturbance in enumerate(course, 1):
        assert_struck(run, number, disturbance)
    assert_same_training(run, straight)
    assert run.evaluations() == straight.evaluations(), "each was told once"


def assert_struck(run: TrainingRun, attempt: int, disturbance: Disturbance) -> None:
    """It hit who and where it should have, and this attempt stopped for it."""
    notices = run.of_attempt(attempt, "notice")
    assert notices[0]["data"]["reason"] == disturbance.signal
    first = {e["rank"] for e in notices if e["data"]["reason"] == disturbance.signal}
    assert first == disturbance.notified()
    assert len({e["data"]["reason"] for e in notices}) == 1 + len(disturbance.also)
    assert run.committed_after(attempt) == disturbance.committed
    stops = [e["data"] for e in run.of_attempt(attempt, "stop_agreed")]
    if disturbance.code == 76:
        # Before the first vote a rank leaves by itself, without asking the others.
        assert stops == []
        return
    (stop,) = stops
    assert stop["step"] == disturbance.committed
    inside: dict[tuple[str, int | None], int] = {("micro", 0): 1, ("micro", 1): 2}
    inside |= {("fetch", None): 0, ("save", None): 0}
    assert stop["micro_batch"] == inside.get((disturbance.at, disturbance.micro))
    interrupted = [e["data"]["step"] for e in run.of_attempt(attempt, "eval_interrupted")]
    assert interrupted == ([disturbance.step] if disturbance.at == "eval" else [])
    resumed = [e["data"]["step"] for e in run.of_attempt(attempt + 1, "resumed")]
    assert resumed == ([] if disturbance.committed is None else [disturbance.committed])
