"""The resume contract: each row of the design's table, with the text that a user reads."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.resume import compare, flatten, notes, refusal

SAVED: dict[str, Any] = {
    "checkpoint_format": 1,
    "world.nodes": 1,
    "world.gpus_per_node": 2,
    "world.zero_stage": 2,
    "global_batch": 24,
    "package.qvl-orchestrate": "0.1.0",
    "python.version": "3.11.7",
    "config.name": "digits",
    "config.lora.r": 8,
    "config.training.learning_rate": 1e-3,
    "config.training.logging_steps": 10,
    "config.checkpoint.every_steps": 10,
    "config.checkpoint.keep_last": 2,
    "config.batch.micro": 4,
    "config.batch.accumulation": 3,
    "config.training.per_device_train_batch_size": 4,
    "config.training.seed": 7,
    "config.training.gradient_accumulation_steps": 3,
    "config.resources.nodes": 1,
    "config.model.path": "/m",
    "config.data.train": "/d/train.json",
    "config.deepspeed.train_batch_size": 24,
    "config.code": ["/c"],
    "quantization.bnb_4bit_quant_type": "nf4",
    "version.torch": "2.13.0",
    "version.peft": "0.21.0",
    "model.digest": "a" * 64,
    "data.train": "b" * 64,
    "data.media": "c" * 64,
    "code.digest": "d" * 64,
    "device.name": "NVIDIA H100",
    "base_digest": "e" * 64,
}
NAME = "attempts/000001/checkpoints/checkpoint-10"
HEAD = f"{NAME} was made under other conditions:\n"
NEVER = (
    "  the state of a checkpoint is only valid under the same conditions: restore them,\n"
    "  or take only its weights: --restart-from weights"
)


def text(versions: str = "warn", allowed: tuple[str, ...] = (), **changes: Any) -> str | None:
    now = {**SAVED, **{k.replace("__", "."): v for k, v in changes.items()}}
    return refusal(compare(SAVED, now, versions=versions, allowed=allowed), NAME)


def noted(versions: str = "warn", allowed: tuple[str, ...] = (), **changes: Any) -> list[str]:
    now = {**SAVED, **{k.replace("__", "."): v for k, v in changes.items()}}
    return notes(compare(SAVED, now, versions=versions, allowed=allowed))


def test_nothing_differs() -> None:
    assert text() is None
    assert noted() == []


# | GPU count, nodes x GPUs, ZeRO stage | refused, both numbers named


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("world__gpus_per_node", 4, "  - GPUs per node: checkpoint 2, now 4\n"),
        ("world__nodes", 2, "  - number of nodes: checkpoint 1, now 2\n"),
        ("world__zero_stage", 1, "  - ZeRO stage: checkpoint 2, now 1\n"),
    ],
)
def test_another_world_is_refused_and_no_flag_allows_it(field: str, value: int, line: str) -> None:
    name = field.replace("__", ".")
    for allowed in ((), (name, "world", "*", "world.*")):
        assert text(allowed=allowed, **{field: value}) == HEAD + line + NEVER


# | resolved config | refused unless --allow-change FIELD


def test_another_config_is_refused_unless_allowed() -> None:
    assert text(config__lora__r=16) == (
        HEAD + "  - config.lora.r: checkpoint 8, now 16\n"
        "  to go on all the same: --allow-change lora.r"
    )
    for flag in ("lora.r", "config.lora.r", "lora.*"):
        assert text(allowed=(flag,), config__lora__r=16) is None
        assert noted(allowed=(flag,), config__lora__r=16) == ["config.lora.r: checkpoint 8, now 16"]
    assert text(allowed=("lora.alpha",), config__lora__r=16) is not None


def test_several_differences_are_shown_together() -> None:
    assert text(config__training__learning_rate=2e-3, config__training__seed=8) == (
        HEAD + "  - config.training.learning_rate: checkpoint 0.001, now 0.002\n"
        "  - config.training.seed: checkpoint 7, now 8\n"
        "  to go on all the same: --allow-change training.learning_rate "
        "--allow-change training.seed"
    )


def test_a_new_and_a_missing_field_count_as_none() -> None:
    assert text(config__lora__use_dora=True) == (
        HEAD + "  - config.lora.use_dora: checkpoint (none), now True\n"
        "  to go on all the same: --allow-change lora.use_dora"
    )
    assert text(config__lora__r=None) == (
        HEAD + "  - config.lora.r: checkpoint 8, now (none)\n"
        "  to go on all the same: --allow-change lora.r"
    )


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("config__training__logging_steps", "config.training.logging_steps: checkpoint 10, now 99"),
        ("config__checkpoint__every_steps", "config.checkpoint.every_steps: checkpoint 10, now 99"),
        ("config__checkpoint__keep_last", "config.checkpoint.keep_last: checkpoint 2, now 99"),
        ("config__name", "config.name: checkpoint digits, now 99"),
    ],
)
def test_logging_interval_and_retention_may_differ(field: str, line: str) -> None:
    assert text(**{field: 99}) is None
    assert noted(**{field: 99}) == [line]


# | user code | refused unless allowed


def test_other_code_is_refused_unless_allowed() -> None:
    change = {"code__digest": "f" * 64}
    assert text(**change) == (
        HEAD + f"  - user code: checkpoint {'d' * 24}…{'d' * 12}, now {'f' * 24}…{'f' * 12}\n"
        "  to go on all the same: --allow-change code.digest"
    )
    assert text(allowed=("code.digest",), **change) is None
    assert text(allowed=("code",), **change) is None


# | versions | strict refuses, warn says so; our own packages warn


def test_versions_strict_and_warn() -> None:
    assert text(version__torch="2.14.0") is None
    assert noted(version__torch="2.14.0") == ["version.torch: checkpoint 2.13.0, now 2.14.0"]
    assert text("strict", version__torch="2.14.0") == (
        HEAD + "  - version.torch: checkpoint 2.13.0, now 2.14.0\n"
        "  to go on all the same: --allow-change versions\n"
        "  or set `python:` in job.yaml to the interpreter of the run"
    )
    assert text("strict", ("versions",), version__torch="2.14.0", version__peft="1") is None


def test_our_own_packages_and_python_only_warn() -> None:
    change = {"package__qvl-orchestrate": "0.2.0", "python__version": "3.12.0"}
    assert text("strict", **change) is None
    assert noted("strict", **change) == [
        "package.qvl-orchestrate: checkpoint 0.1.0, now 0.2.0",
        "python.version: checkpoint 3.11.7, now 3.12.0",
    ]


def test_another_checkpoint_format_is_refused() -> None:
    assert text(allowed=("*",), checkpoint_format=2) == (
        HEAD + "  - checkpoint_format: checkpoint 1, now 2\n" + NEVER
    )


# | dataset | refused


@pytest.mark.parametrize(
    ("field", "title", "old"),
    [("data__train", "training data index", "b"), ("data__media", "media files of the data", "c")],
)
def test_other_data_is_refused(field: str, title: str, old: str) -> None:
    assert text(**{field: "f" * 64}) == (
        HEAD + f"  - {title}: checkpoint {old * 24}…{old * 12}, now {'f' * 24}…{'f' * 12}\n"
        f"  to go on all the same: --allow-change {field.replace('__', '.')}"
    )


def test_an_evaluation_set_that_is_new_is_refused() -> None:
    assert text(data__eval="f" * 64) == (
        HEAD + f"  - evaluation data index: checkpoint (none), now {'f' * 24}…{'f' * 12}\n"
        "  to go on all the same: --allow-change data.eval"
    )


# | base model, quantization | refused


def test_another_base_model_is_refused() -> None:
    assert text(allowed=("model", "*"), model__digest="f" * 64) == (
        HEAD + f"  - base model files: checkpoint {'a' * 24}…{'a' * 12}, "
        f"now {'f' * 24}…{'f' * 12}\n" + NEVER
    )


def test_another_revision_of_the_base_is_refused() -> None:
    saved, now = (
        {"model.revision": "abc", "model.id": "Q"},
        {"model.revision": "abd", "model.id": "Q"},
    )
    assert refusal(compare(saved, now), NAME) == (
        HEAD + "  - base model revision: checkpoint abc, now abd\n" + NEVER
    )


def test_another_quantization_is_refused() -> None:
    assert text(allowed=("quantization",), quantization__bnb_4bit_quant_type="fp4") == (
        HEAD + "  - quantization.bnb_4bit_quant_type: checkpoint nf4, now fp4\n" + NEVER
    )


# | micro-batch x accumulation | only the global batch is compared


def test_another_cut_of_the_same_batch_is_no_difference() -> None:
    change = {
        "config__batch__micro": 1,
        "config__batch__accumulation": 12,
        "config__training__per_device_train_batch_size": 1,
        "config__training__gradient_accumulation_steps": 12,
        "config__deepspeed__train_batch_size": 24,
        "config__deepspeed__train_micro_batch_size_per_gpu": 1,
    }
    assert text(**change) is None
    assert noted(**change) == []


def test_another_global_batch_is_refused() -> None:
    assert text(global_batch=48) == (
        HEAD + "  - global batch size: checkpoint 24, now 48\n"
        "  to go on all the same: --allow-change global_batch"
    )


# | seeds | the seed is part of the config; RNG and hashes are the trainer's (unit/trainer)


def test_another_seed_is_refused() -> None:
    assert text(config__training__seed=8) == (
        HEAD + "  - config.training.seed: checkpoint 7, now 8\n"
        "  to go on all the same: --allow-change training.seed"
    )


# | GPU model or driver | compared by the ranks


def test_another_gpu_model_is_not_refused_here() -> None:
    assert text(device__name="NVIDIA A100", base_digest="f" * 64) is None


# | mixed


def test_with_one_difference_that_no_flag_allows_no_flag_is_offered() -> None:
    found = text(world__nodes=2, config__lora__r=16)
    assert found == (
        HEAD + "  - config.lora.r: checkpoint 8, now 16\n"
        "  - number of nodes: checkpoint 1, now 2\n" + NEVER
    )


def test_refused_ones_come_first() -> None:
    found = compare(SAVED, {**SAVED, "config.name": "x", "world.nodes": 2})
    assert [d.refused for d in found] == [True, False]


def test_moving_model_and_data_is_no_difference() -> None:
    assert text(config__model__path="/elsewhere", config__data__train="/e/train.json") is None


def test_flatten() -> None:
    value = {"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": {}, "g": None}
    assert flatten(value, "x") == {"x.a.b": 1, "x.a.c.d": [1, {"e": 2}], "x.g": None}
    assert flatten(3, "x") == {"x": 3}
