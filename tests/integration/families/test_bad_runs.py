"""Runs on data and models that are not right: replaced, or ended with the name of the culprit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness.training import STEPS, Disturbance, TrainingBench
from tests.integration.data.poison import poisoned
from trainer.data.replacing import read_replaced

pytestmark = [
    pytest.mark.families,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),
]


def test_a_parameter_without_gradient_ends_the_run(
    bench_of: Callable[[str], TrainingBench],
) -> None:
    bench = bench_of("qwen3_vl")
    bench.module = "tests.integration.families.unused"
    run = bench.probed(replace(bench.job(), name="unused"), [])
    assert run.finish().state == "FAILED"
    assert run.verdicts() == [78]
    (verdict,) = run.of_attempt(1, "verdict")
    assert "language_model.layers.0.lora_unused" in verdict["data"]["message"]
    assert run.commits() == []


def test_a_poisoned_set_trains_with_the_same_replacements(
    bench_of: Callable[[str], TrainingBench], tmp_path: Path
) -> None:
    """Half of the samples are broken, some have no picture; adapters also in the vision tower."""
    bench = bench_of("qwen2_5_vl")
    poison = poisoned(tmp_path, "messages")
    job = bench.job(training={"dataloader_num_workers": 1})
    job = replace(
        job,
        data=replace(job.data, train=str(poison.file), eval=None, max_replaced=1000),
        training={**job.training, "eval_strategy": "no"},
        lora={**job.lora, "target_modules": "llm+vision"},
        max_length=400,
    )
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    run = bench.disturbed(job, [Disturbance("micro", 7, "SIGTERM", [1], 75, 7, micro=1)])
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 0]
    assert run.outcome() == straight.outcome()
    assert len(run.curve()) == STEPS
    replaced = {r.index: r.by for r in read_replaced(run.storage)}
    assert len(replaced) > 40
    before = {r.index: r.by for r in read_replaced(straight.storage)}
    assert replaced == before
    told = [e["data"]["index"] for e in run.events("replaced")]
    assert set(told) == set(replaced)


def test_too_many_broken_samples_end_the_run(
    bench_of: Callable[[str], TrainingBench], tmp_path: Path
) -> None:
    bench = bench_of("qwen2_5_vl")
    poison = poisoned(tmp_path, "conversations")
    job = bench.job()
    job = replace(
        job,
        data=replace(job.data, train=str(poison.file), eval=None, max_replaced=3),
        training={**job.training, "eval_strategy": "no"},
    )
    run = bench.probed(job, [])
    assert run.finish().state == "FAILED"
    assert run.verdicts() == [78]
    (verdict,) = run.of_attempt(1, "verdict")
    assert "samples are broken, data.max_replaced is 3" in verdict["data"]["message"]
