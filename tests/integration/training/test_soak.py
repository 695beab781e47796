"""Real training, disturbed at moments of the clock that nobody chose: notices and kills.

QVL_SOAK_SEEDS: the seeds, one run each; QVL_SOAK_BLOWS: attempts that suffer something. A seed
fixes who is hit by what and how late (as a part of the time that the undisturbed run took);
what that meets is up to the machine.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass

import pytest

from orchestrator.agent.identity import pid_of
from orchestrator.errors import UserError
from orchestrator.operations.actions import preempt
from tests.harness.training import EVERY, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SEEDS = [int(s) for s in os.environ.get("QVL_SOAK_SEEDS", "").split()] or [1, 2, 3]
BLOWS = int(os.environ.get("QVL_SOAK_BLOWS", "12"))
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")


@dataclass(frozen=True)
class Blow:
    """What one attempt suffers."""

    moment: float
    """0 = at its start, 1 = when an undisturbed attempt would have ended."""
    target: str
    """rank-0, rank-1, agent, group, or `kill`: SIGKILL to everything."""
    signal: str

    @classmethod
    def draw(cls, chance: random.Random) -> Blow:
        target = chance.choice(["rank-0", "rank-1", "agent", "group", "kill"])
        return cls(chance.random(), target, chance.choice(SIGNALS))


@pytest.mark.parametrize("seed", SEEDS)
def test_disturbed_at_random(bench: TrainingBench, straight: TrainingRun, seed: int) -> None:
    chance = random.Random(seed)
    workers = chance.choice([0, 2])
    run = bench.probed(bench.lasting_job(training={"dataloader_num_workers": workers}), [])
    run.hurry()
    whole_s, attempt = straight.seconds(), 1
    for _ in range(BLOWS):
        step = run.follow(lambda s, n=attempt: s.settled or s.row["attempt"] >= n, seconds=600)
        if step.settled:
            break
        attempt = step.row["attempt"] + 1
        blow = Blow.draw(chance)
        time.sleep(blow.moment * whole_s)
        strike(run, blow)
    end = run.follow(seconds=600)
    run.wait_gone()
    assert end.state == "SUCCEEDED", end.row
    assert_little_is_lost(run)
    assert_same_training(run, straight, killed=True)


def strike(run: TrainingRun, blow: Blow) -> None:
    """Deliver it; an attempt that has ended meanwhile is left alone."""
    step = run.look()
    pid = pid_of(step.row["backend_job_id"] or "")
    if pid is None:
        return
    try:
        if blow.target == "kill":
            run.kill_all()
        elif blow.target == "group":
            os.killpg(pid, getattr(signal, blow.signal))
        else:
            ranks = [int(blow.target[-1])] if blow.target != "agent" else []
            preempt(run.run, blow.signal, ranks)
    except (UserError, ProcessLookupError):
        return


def assert_little_is_lost(run: TrainingRun) -> None:
    """An attempt that was told in time committed the step it had reached; a killed one lost
    less than two intervals (the save of the last may have been on its way)."""
    for attempt, code in enumerate(run.verdicts(), 1):
        lost = run.reached(attempt) - (run.committed_after(attempt) or 0)
        assert lost < (2 * EVERY if code == -1 else 1), f"attempt {attempt}, exit code {code}"
