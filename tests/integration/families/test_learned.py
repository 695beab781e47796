"""A learned task, not only a falling loss: digits that were never trained on are read right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import CheckpointSpec, ResolvedJob
from tests.harness.training import Disturbance, TrainingBench, TrainingRun
from tests.integration.families.conftest import HELD_OUT

STEPS = 120
MARGIN = 0.5
"""By which the share of digits read right must beat the most frequent answer's share."""

pytestmark = [
    pytest.mark.families,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),
]


def job_of(bench: TrainingBench) -> ResolvedJob:
    """Adapters everywhere, 24 pictures a step on two ranks, no evaluation."""
    training = {
        "max_steps": STEPS,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
    }
    job = bench.job(training={})
    return replace(
        job,
        data=replace(job.data, eval=None),
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "llm+vision"},
        training={"seed": 7, **training},
        checkpoint=CheckpointSpec(uri=str(bench.folder / "runs"), every_steps=50),
        batch=BatchPlan(micro=6, accumulation=2, world_size=2),
    )


def test_digits_are_learned_through_preemptions(bench_of: Callable[[str], TrainingBench]) -> None:
    bench = bench_of("qwen2_5_vl")
    job = job_of(bench)
    course = [
        Disturbance("micro", 20, "SIGTERM", [0], 75, 20, micro=0),
        Disturbance("fetch", 75, "SIGUSR1", [1], 75, 75),
    ]
    run = bench.disturbed(job, course)
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 75, 0]
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    assert run.outcome() == straight.outcome()
    assert final_state(run) == final_state(straight)
    chance = most_frequent(bench.data)
    assert chance < 0.2
    assert read_right(run, bench.data) >= chance + MARGIN


def final_state(run: TrainingRun) -> dict[str, Any]:
    """All but `total_flos`: Transformers rounds it to float32 at each save, so that one more
    save may change its last digits. Nothing is computed from it."""
    state = run.final_state()
    return {**state, "trainer": {k: v for k, v in state["trainer"].items() if k != "total_flos"}}


def most_frequent(data: Path) -> float:
    """Share of the held-out digits that one fixed answer gets right."""
    answers = Counter(
        sample["conversations"][-1]["value"]
        for sample in json.loads((data / "eval.json").read_text())
    )
    assert sum(answers.values()) == HELD_OUT
    return max(answers.values()) / HELD_OUT


def read_right(run: TrainingRun, data: Path) -> float:
    """Share of the held-out digits whose whole answer is the most likely one."""
    import torch

    from trainer.commands.result import load_trained
    from trainer.data.dataset import Collator, load_dataset
    from trainer.vision_language.families.processor import IGNORE

    job = run.run.job()
    folder = str(run.directory / run.directory_of())
    loaded = load_trained(job, folder, torch.device("cpu"))
    spec = replace(job.data, eval=str(data / "eval.json"))
    held_out = load_dataset(spec, "eval", loaded.processor, None)
    collate = Collator(loaded.processor.pad_token_id)
    right = 0
    for first in range(0, HELD_OUT, 50):
        batch = collate([held_out[i] for i in range(first, first + 50)])
        del batch["sample_index"]
        labels = batch["labels"][:, 1:]
        with torch.no_grad():
            chosen = loaded.model(**batch).logits[:, :-1].argmax(-1)
        right += int(((chosen == labels) | (labels == IGNORE)).all(dim=1).sum())
    return right / HELD_OUT
