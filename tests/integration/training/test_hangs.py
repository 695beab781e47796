"""Real Q-LoRA that hangs: a rank that is stopped, then a loader worker; the run goes on alike."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.run_directory import attempts
from tests.harness.runs import descendants, kill
from tests.harness.training import TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

HANG_S = 25.0
"""Imports may take three times as long: on a busy machine they come near it."""
OF_LOADERS = ("_try_get_data", "rebuild_storage_fd")
"""Where a rank waits for a loader worker: for the batch, or for its tensors."""
STOPPED = {"at": "micro", "step": 6, "micro": 1, "rank": 1, "do": "hang", "how": "is_stopped"}
SLOWLY = {"at": "boundary", "step": 7, "rank": 0, "do": "sleep", "seconds": 4.0}


def test_hangs_end_as_failures_and_the_run_equals_the_undisturbed(
    bench: TrainingBench, straight: TrainingRun
) -> None:
    job = replace(bench.lasting_job(training={"dataloader_num_workers": 1}), hang_s=HANG_S)
    run = bench.probed(job, [{**STOPPED, "attempt": 1}, {**SLOWLY, "attempt": 2}])
    run.hurry()
    run.follow(lambda s: s.row["attempt"] == 2 and trains(run, 2))
    workers = loader_workers(run)
    kill(workers, signal.SIGSTOP)
    end = run.finish()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 3), run.logs()
    assert workers
    assert run.verdicts() == [1, 1, 0]
    first, second = (attempts.read_verdicts(run.storage, n)[0] for n in (1, 2))
    assert (first.reason, second.reason) == ("hang", "hang")
    assert first.message.startswith("no step for ")
    assert "rank 1 stopped, rank 0 in all_" in first.message
    assert any(f" in {name}" in second.message for name in OF_LOADERS), second.message
    assert_same_training(run, straight, killed=True)


def trains(run: TrainingRun, attempt: int) -> bool:
    return any(e["data"]["stage"] == "first step" for e in run.of_attempt(attempt, "stage"))


def loader_workers(run: TrainingRun) -> list[int]:
    """Forks of the ranks; their savers are programs of their own."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(run.agent_pid())}
    ranks = {pid for pid, name in names.items() if b"tests.harness.probe" in name}
    return [p for rank in ranks for p in descendants(rank) if p in ranks]
