"""Every optimizer and every schedule that a job file accepts: trained, preempted within a step,
resumed, and equal to the undisturbed run, with ZeRO-1 and 2.

Tiny trainings in one process that imports once (tests.harness.matrix); as whole runs: the soak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.checks import rates
from orchestrator.config.models.library import TrainingSection
from tests.harness.ranks import ROOT
from tests.harness.training import Disturbance, TrainingBench, assert_same_training

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 5}
RESTLESS = {"patience": 0, "factor": 0.5, "threshold": 10.0}
"""Of schedules by the loss: another rate after each evaluation."""
SETTINGS: dict[str, dict[str, Any]] = {
    "reduce_lr_on_plateau": {"lr_scheduler_kwargs": RESTLESS, **EVERY_STEP},
    "greedy": {"lr_scheduler_kwargs": {**RESTLESS, "min_lr": 1e-6}, **EVERY_STEP},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 2}},
    "constant": {"warmup_steps": 0},
}


def accepted(name: str) -> list[str]:
    """The choices of an argument that a job file may give."""
    choices = typing.get_args(TrainingSection.model_fields[name].annotation)
    return [c for c in choices if not refused({name: c, **SETTINGS.get(c, {})})]


def refused(training: dict[str, Any]) -> bool:
    return bool(list(rates.faults(training)))


OPTIMIZERS, SCHEDULES = accepted("optim"), accepted("lr_scheduler_type")


def case(number: int, stage: int) -> dict[str, Any]:
    """The pairs differ by stage; every second one is sharded over two ranks."""
    optim = OPTIMIZERS[number % len(OPTIMIZERS)]
    schedule = SCHEDULES[(number + 5 * stage) % len(SCHEDULES)]
    training = {"optim": optim, "lr_scheduler_type": schedule, **SETTINGS.get(schedule, {})}
    return {
        "id": f"zero{stage}-{optim}-{schedule}",
        "stage": stage,
        "training": training,
        "evaluate": schedule in rates.BY_METRIC,
        "ranks": 1 + (number + stage) % 2,
    }


def deepspeeds_own(stage: int) -> dict[str, Any]:
    """The optimizer that a DeepSpeed file may name: DeepSpeed makes it, the schedule after it."""
    params = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    return {
        **case(SCHEDULES.index("polynomial"), stage),
        "id": f"zero{stage}-deepspeed-polynomial",
        "training": {"lr_scheduler_type": "polynomial"},
        "evaluate": False,
        "deepspeed": {"optimizer": {"type": "AdamW", "params": {**params, "torch_adam": True}}},
    }


CASES = {
    c["id"]: c
    for stage in (1, 2)
    for c in (
        *(case(number, stage) for number in range(max(len(OPTIMIZERS), len(SCHEDULES)))),
        deepspeeds_own(stage),
    )
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, training_data: Path) -> Iterator[Any]:
    """Asks for a case by its id; they are computed in this order."""
    folder = tmp_path_factory.mktemp("rates")
    (folder / "data").symlink_to(training_data)
    lines = "".join(json.dumps(c) + "\n" for c in CASES.values())
    (folder / "cases").write_text(lines)
    with (folder / "cases").open() as cases, (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.matrix", str(folder)],
            stdin=cases,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
    found: dict[str, Any] = {}

    def result(name: str) -> dict[str, Any]:
        assert process.stdout is not None
        while name not in found:
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()[-2000:]
            answer = json.loads(line)
            found[answer["id"]] = answer
        return found[name]  # type: ignore[no-any-return]

    yield result
    process.kill()
    process.communicate()


@pytest.mark.rates
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_a_preempted_training_equals_the_undisturbed(results: Any, name: str) -> None:
    found = results(name)
    assert found["fault"] == ""
    schedule = CASES[name]["training"]["lr_scheduler_type"]
    assert (len(set(found["rates"])) > 1) == (schedule != "constant"), "the schedule did something"


@pytest.mark.rates
def test_all_that_a_job_file_accepts_is_among_them() -> None:
    for stage in (1, 2):
        mine = [c["training"] for c in CASES.values() if c["stage"] == stage]
        assert {t["optim"] for t in mine if "optim" in t} == set(OPTIMIZERS)
        assert {t["lr_scheduler_type"] for t in mine} == set(SCHEDULES)
    assert set(SCHEDULES) == set(rates.SETTINGS)
    assert "adamw_torch_fused" in OPTIMIZERS


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "deepspeed" not in c])
def test_whole_runs(bench: TrainingBench, name: str) -> None:
    """The same by agents, helpers and savers, on two ranks."""
    found = CASES[name]
    job = bench.job()
    config = {**job.deepspeed, "zero_optimization": {"stage": found["stage"]}}
    training = {**job.training, **found["training"]}
    job = replace(job, training=training, deepspeed=config, zero_stage=found["stage"])
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED", straight.logs()
    course = [
        Disturbance("micro", 6, "SIGTERM", [0], 75, 6, micro=1),
        Disturbance("boundary", 13, "SIGUSR1", "agent", 75, 13),
    ]
    run = bench.disturbed(job, course)
    assert run.finish().state == "SUCCEEDED", run.logs()
    assert_same_training(run, straight)
