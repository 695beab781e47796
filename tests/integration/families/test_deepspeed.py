"""DeepSpeed configurations other than the default one: trained, preempted, and resumed alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config.resolving.deepspeed import from_stage, merged
from tests.harness.training import Disturbance, TrainingBench, assert_same_training

pytestmark = [
    pytest.mark.families,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),
]

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
CONFIGS: dict[str, dict[str, Any]] = {
    "zero 1": from_stage(1, fp16=False),
    "optimizer on the CPU": merged(OFFLOAD, None, fp16=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_preempted_and_resumed_alike(name: str, bench_of: Callable[[str], TrainingBench]) -> None:
    bench, config = bench_of("qwen3_vl"), CONFIGS[name]
    job = replace(bench.job(), deepspeed=config, zero_stage=config["zero_optimization"]["stage"])
    few = replace(job.data, eval=None)
    job = replace(job, data=few, training={**job.training, "eval_strategy": "no"})
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED", straight.logs()
    run = bench.disturbed(job, [Disturbance("micro", 6, "SIGUSR1", [1], 75, 6, micro=1)])
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 0]
    assert len(run.of_attempt(2, "reproduced")) == 2
    assert_same_training(run, straight)
