"""The best checkpoints by evaluation stay, in a run that is preempted as in one that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.run_directory.checkpoints import live_commits
from orchestrator.run_directory.runlog import RunLog
from tests.harness.training import (
    EVERY,
    STEPS,
    Disturbance,
    TrainingBench,
    TrainingRun,
    assert_same_training,
)

pytestmark = [
    pytest.mark.families,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),
]


def kept(run: TrainingRun) -> set[int]:
    return {r.commit().step for r in live_commits(RunLog(run.storage).read())}


def test_the_best_are_saved_and_kept(bench_of: Callable[[str], TrainingBench]) -> None:
    """Two of them and the newest one: at least one is kept that no interval has saved."""
    bench = bench_of("qwen2_vl")
    job = bench.job(training={"learning_rate": 0.1})
    job = replace(job, checkpoint=replace(job.checkpoint, keep_last=1, keep_best=2))
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    stops = [
        Disturbance("eval", 5, "SIGTERM", [0], 75, 5),
        Disturbance("micro", 12, "SIGUSR1", [1], 75, 12, micro=0),
    ]
    run = bench.disturbed(job, stops)
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 75, 0]
    assert_same_training(run, straight)
    losses = dict(straight.evaluations())
    assert len(losses) == STEPS // 5
    best = set(sorted(losses, key=lambda step: (losses[step], step))[:2])
    assert kept(straight) == kept(run) == {*best, STEPS}
    saved = {step for _, step, _ in straight.commits()}
    assert best - {STEPS} <= saved
    assert saved >= set(range(EVERY, STEPS, EVERY))
