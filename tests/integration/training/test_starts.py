"""Real Q-LoRA that goes on otherwise than it began: smaller micro-batches, weights only."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from orchestrator.clock import parse_iso
from orchestrator.contract.resolved import CheckpointSpec
from orchestrator.operations.actions import cancel, resume
from orchestrator.run_directory import attempts, checkpoints
from tests.harness.training import EVERY, STEPS, TrainingBench, TrainingRun

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def test_out_of_memory_goes_on_with_smaller_micro_batches(
    bench: TrainingBench, straight: TrainingRun
) -> None:
    """One rank meets a real limit of its address space in the middle of a step."""
    chance = random.Random(5)
    spot = {"at": "micro", "step": 5, "micro": chance.randrange(3), "rank": chance.randrange(2)}
    run = bench.probed(bench.job(), [{**spot, "do": "memory", "attempt": 1}])
    end = run.finish()
    assert (end.state, end.row["attempt"], end.row["preemptions"]) == ("SUCCEEDED", 2, 0)
    assert run.verdicts() == [77, 0]
    (verdict,) = run.of_attempt(1, "verdict")
    assert "can't allocate memory" in verdict["data"]["message"]
    plans = [(c.plan.micro, c.plan.accumulation) for c in attempts.read_claims(run.storage)]
    assert plans == [(2, 3), (1, 6)]
    assert run.committed_after(1) == EVERY
    for rank in (0, 1):
        ours, theirs = run.curve(rank), straight.curve(rank)
        assert sorted(ours) == sorted(theirs)
        for step, row in theirs.items():
            assert ours[step].samples == row.samples
            assert ours[step].learning_rate == row.learning_rate
            assert len(ours[step].micro_losses) == (3 if step <= EVERY else 6)
            if step <= EVERY:
                assert ours[step].micro_losses == row.micro_losses
            assert ours[step].loss == pytest.approx(row.loss, rel=0.05)


def test_saved_by_the_clock_then_restarted_from_weights(
    bench: TrainingBench, straight: TrainingRun
) -> None:
    minutes = 0.2 / 60
    spec = CheckpointSpec(uri=str(bench.folder / "runs"), every_minutes=minutes, keep_last=99)
    pause = {"at": "boundary", "step": 14, "rank": 0, "do": "pause", "attempt": 1}
    run = bench.probed(replace(bench.job(), checkpoint=spec), [pause])
    run.follow(lambda s: s.row["step"] >= 13)
    assert cancel(run.run)
    assert run.finish().state == "CANCELLED"
    assert_saved_by_the_clock(run, 60 * minutes)
    last = run.manifest()
    assert last.step >= 13

    resume(run.run, restart_from="weights")
    assert run.finish().state == "SUCCEEDED"
    for rank in (0, 1):
        assert run.seen(2, rank) == {
            "step": 0,
            "engine_steps": 0,
            "scheduler_step": 0,
            "adapter_digest": last.adapter_digest,
            "moments": 0.0,
        }
        ours, theirs = run.curve(rank), straight.curve(rank)
        assert [r.attempt for r in ours.values()] == [2] * STEPS
        for step, row in theirs.items():
            assert (ours[step].samples, ours[step].learning_rate) == (
                row.samples,
                row.learning_rate,
            )
    assert run.curve()[1].loss_hex != straight.curve()[1].loss_hex


def assert_saved_by_the_clock(run: TrainingRun, interval_s: float) -> None:
    """Complete on all ranks at steps that no other rule gives, never sooner than asked."""
    records = [r for r in run.records() if r.kind == "commit"]
    by_time = [r for r in records if r.commit().trigger == "interval"]
    assert len(by_time) >= 2
    for record in records:
        manifest = checkpoints.verify(run.storage, record).manifest
        assert len(manifest.rank_digests) == len(manifest.rng_digests) == 2
    times = [parse_iso(r.time) for r in by_time]
    assert all(b - a >= interval_s for a, b in itertools.pairwise(times))
    steps = [r.commit().step for r in by_time]
    assert steps == sorted(set(steps))
