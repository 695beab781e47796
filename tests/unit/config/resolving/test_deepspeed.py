"""The DeepSpeed configuration: made from a stage, or the user's file, checked."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.resolving.deepspeed import merged
from tests.unit.config.conftest import Folder


def said(folder: Folder, config: Any, *overrides: str) -> str:
    folder.write("ds.json", config)
    return folder.said("deepspeed={config: ds.json}", *overrides)


def test_a_stage_gives_a_configuration_without_an_optimizer(folder: Folder) -> None:
    assert folder.resolve().deepspeed == {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }


def test_half_precision_reaches_deepspeed(folder: Folder) -> None:
    half = ("quantization.bnb_4bit_compute_dtype=float16", "training.fp16=true")
    assert folder.resolve(*half).deepspeed["fp16"] == {"enabled": "auto"}


@pytest.mark.parametrize("form", ["deepspeed={config: ds.json}", "deepspeed=ds.json"])
def test_a_file_is_merged(folder: Folder, form: str) -> None:
    folder.write(
        "ds.json",
        {
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
            "train_batch_size": 12,
            "train_micro_batch_size_per_gpu": 2,
            "steps_per_print": 5,
        },
    )
    job = folder.resolve(form)
    assert job.zero_stage == 1
    assert job.deepspeed["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert job.deepspeed["train_batch_size"] == "auto"
    assert job.deepspeed["steps_per_print"] == 5


def test_a_file_without_a_stage_takes_that_of_the_job(folder: Folder) -> None:
    folder.write("ds.json", {"steps_per_print": 5})
    assert folder.resolve("deepspeed={config: ds.json, stage: 1}").zero_stage == 1
    assert folder.resolve("deepspeed={config: ds.json}").zero_stage == 2


@pytest.mark.parametrize(
    ("config", "what", "hint"),
    [
        (
            {"train_batch_size": 16},
            "the global batch 16 is not 2 (micro-batch) x 3 (accumulation) x 2 (GPUs) = 12",
            "use auto",
        ),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "contradicts training.per_device_train_batch_size: 2",
            "use auto",
        ),
        (
            {"gradient_accumulation_steps": 4},
            "contradicts training.gradient_accumulation_steps: 3",
            "use auto",
        ),
        ({"bf16": {"enabled": False}}, "bf16.enabled: false contradicts training.bf16: true", ""),
        ({"fp16": {"enabled": True}}, "fp16.enabled: true contradicts training.fp16: false", ""),
        ({"gradient_clipping": 2.0}, "2.0 contradicts training.max_grad_norm: 1.0", "use auto"),
        ({"scheduler": {}}, "scheduler: cannot be set here", "use training.lr_scheduler_type"),
        ({"checkpoint": {}}, "checkpoint: cannot be set here", "checkpoints are ours"),
        ({"zero_optimisation": {}}, "unknown field", "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 3}}, "cannot partition quantized weights", "use stage 2"),
        ({"zero_optimization": {"stage": 0}}, "must be 1 or 2, not 0", ""),
        ({"zero_optimization": {"stage": True}}, "must be 1 or 2, not true", ""),
        ({"zero_optimization": {"stage": 2.0}}, "must be 1 or 2, not 2.0", ""),
        (
            {"zero_optimization": {"overlap_com": True}},
            "zero_optimization.overlap_com: unknown field",
            "did you mean overlap_comm?",
        ),
        ({"zero_optimization": {"zzzz": 1}}, "unknown field", "it is no setting of ZeRO"),
        ({"zzzz": 1}, "zzzz: unknown field", "it is no setting of DeepSpeed"),
        ({"compression_training": {}}, "cannot be set here", "remove it"),
        ({"zero_optimization": []}, "must be a block of fields", ""),
        ({"zero_optimization": {"overlap_comm": 3}}, "must be true or false or auto, not 3", ""),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "must be more than 0, not -1", ""),
        ({"steps_per_print": "10"}, "must be a whole number or auto", "quotation marks"),
        ({"bf16": {"enable": True}}, "bf16.enable: unknown field", "did you mean enabled?"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "not in the checkpoint",
            "use cpu",
        ),
        ({"optimizer": {"type": "Lamb"}}, "contradicts training.optim", "remove it"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 0.1, "betas": "auto"}}},
            "optimizer.params.lr: 0.1 contradicts training.learning_rate: 0.001",
            "use auto",
        ),
        ({"optimizer": 3}, "must be an object with type and params", ""),
        ({}, "must be a JSON object with settings", ""),
        ([1], "must be a JSON object with settings", ""),
    ],
)
def test_contradictions(folder: Folder, config: Any, what: str, hint: str) -> None:
    text = said(folder, config)
    assert "ds.json" in text
    assert what in text
    assert hint in text


def test_faults_name_the_line_of_the_json(folder: Folder) -> None:
    text = said(folder, {"steps_per_print": 1, "bf16": {"enabled": False}})
    assert text.startswith("ds.json:4 bf16.enabled: false contradicts")


def test_a_stage_given_twice(folder: Folder) -> None:
    text = said(folder, {"zero_optimization": {"stage": 1}}, "deepspeed.stage=2")
    assert "1 contradicts deepspeed.stage: 2" in text


@pytest.mark.parametrize("content", ["{", "nope", '{"a": NaN}', '{"a": 1e999}', '{"a":"\\ud800"}'])
def test_what_is_no_json(folder: Folder, content: str) -> None:
    (folder.path / "ds.json").write_text(content)
    assert "deepspeed.config: ds.json: not JSON" in folder.said("deepspeed.config=ds.json")


def test_a_missing_file(folder: Folder) -> None:
    text = folder.said("deepspeed={config: none.json}")
    assert "deepspeed.config: none.json: no such file" in text
    assert "paths are relative to the job file" in text


@pytest.mark.parametrize(
    ("user", "forced"),
    [
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, False),
        (
            {
                "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
                "zero_force_ds_cpu_optimizer": True,
            },
            True,
        ),
        ({"zero_optimization": {"stage": 1}}, None),
    ],
)
def test_an_offloaded_optimizer_is_the_trainers(user: dict[str, Any], forced: bool | None) -> None:
    """DeepSpeed's own one for CPUs would be compiled at the start; only who asks gets it."""
    assert merged(user, None, fp16=False).get("zero_force_ds_cpu_optimizer") is forced
