"""Contradictions and dangers among training, quantization, LoRA and DeepSpeed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.arguments.reserved import BASE_CHANGING_INITS
from orchestrator.config.checks import rates
from orchestrator.config.faults import Fault
from orchestrator.config.models.job import JobSpec
from orchestrator.config.models.library import TARGET_PRESETS
from orchestrator.config.values.suggest import listed, nearest

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""The two spellings; the second is the older one."""


def faults(job: JobSpec) -> tuple[Fault, ...]:
    """Every contradiction among these blocks of a job."""
    training = job.training.given()
    return (
        *_quantization(job),
        *_zero(job),
        *_lora(job.lora.given()),
        *_length(job),
        *_precision(job),
        *rates.faults(training),
        *_checkpointing(training),
        *_reporting(training),
        *_workers(training),
        *_evaluation(job),
    )


def max_steps(training: Mapping[str, Any]) -> int | None:
    """`max_steps`, or None where the run is measured in epochs."""
    value = training.get("max_steps", -1)
    return value if isinstance(value, int) and value > 0 else None


def given_quantization(job: JobSpec) -> dict[str, Any]:
    """What the job says, or is taken to say, about it; empty for none."""
    return job.quantization.given() if job.quantization else {}


def _training(name: str, message: str, hint: str | None = None) -> Fault:
    return Fault(("training", name), message, hint)


def _quantization(job: JobSpec) -> Iterator[Fault]:
    given = given_quantization(job)
    four, eight = bool(given.get("load_in_4bit")), bool(given.get("load_in_8bit"))
    if four and eight:
        yield Fault(
            ("quantization", "load_in_8bit"), "4-bit and 8-bit exclude each other", "keep one"
        )
    if not four:
        for name in given:
            if name.startswith("bnb_4bit_"):
                yield Fault(
                    ("quantization", name),
                    "has no effect without load_in_4bit",
                    "add load_in_4bit: true, or remove it",
                )


def _zero(job: JobSpec) -> Iterator[Fault]:
    if job.deepspeed.stage == 3:
        given = given_quantization(job)
        quantized = bool(given.get("load_in_4bit") or given.get("load_in_8bit"))
        yield zero3_fault(("deepspeed", "stage"), quantized=quantized)


def zero3_fault(path: tuple[str, ...], *, quantized: bool) -> Fault:
    """ZeRO-3 asked for: impossible with quantized weights, not supported without."""
    said = "cannot partition quantized weights" if quantized else "is not supported yet"
    return Fault(path, f"ZeRO-3 {said}", "use stage 2")


def _lora(lora: Mapping[str, Any]) -> Iterator[Fault]:
    init = lora.get("init_lora_weights")
    if isinstance(init, str) and init.split("_")[0] in BASE_CHANGING_INITS:
        yield Fault(
            ("lora", "init_lora_weights"),
            f"{init} reads data or changes the base weights, which must stay frozen",
            "use true, gaussian or orthogonal",
        )
    target = lora.get("target_modules")
    if isinstance(target, str) and target not in (*TARGET_PRESETS, "all-linear"):
        if re.fullmatch(r"[\w+ -]*", target):
            near = nearest(target, TARGET_PRESETS)
            yield Fault(
                ("lora", "target_modules"),
                f"{target!r} is neither a preset nor a pattern that matches whole module names",
                f"did you mean {near}?"
                if near
                else f"use {listed(TARGET_PRESETS)}, or a list: [{target}]",
            )
        elif not _compiles(target):
            yield Fault(("lora", "target_modules"), "is not a regular expression")


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _length(job: JobSpec) -> Iterator[Fault]:
    training = job.training.given()
    total = max_steps(training)
    epochs = training.get("num_train_epochs")
    if total is None and epochs is None:
        yield Fault(
            ("training",), "the length of the run is missing", "add max_steps or num_train_epochs"
        )
    if total is not None and epochs is not None:
        yield _training(
            "num_train_epochs", "max_steps is given too, and would win", "remove one of the two"
        )
    if total is None:
        return
    every = job.checkpoint.every_steps
    if every is not None and every > total:
        yield Fault(
            ("checkpoint", "every_steps"),
            f"the save interval ({every} steps) is longer than the run ({total})",
            f"use at most {total}",
        )
    for name in ("eval_steps", "warmup_steps"):
        value = training.get(name) or 0
        if value > total:
            yield _training(name, f"{value} is more than the whole run ({total} steps)")


def _precision(job: JobSpec) -> Iterator[Fault]:
    training = job.training.given()
    half = {kind: bool(training.get(kind)) for kind in ("bf16", "fp16")}
    if half["bf16"] and half["fp16"]:
        yield _training("fp16", "bf16 and fp16 exclude each other", "keep one")
    for kind, other in (("bf16", "fp16"), ("fp16", "bf16")):
        full = f"{other}_full_eval"
        if training.get(full) and (half[kind] or training.get(f"{kind}_full_eval")):
            yield _training(full, f"contradicts {kind}", f"use {kind}_full_eval")
            break
    compute = given_quantization(job).get("bnb_4bit_compute_dtype")
    if (half["bf16"] and compute == "float16") or (half["fp16"] and compute == "bfloat16"):
        on = "bf16" if half["bf16"] else "fp16"
        yield Fault(
            ("quantization", "bnb_4bit_compute_dtype"),
            f"{compute} contradicts training.{on}",
            f"use {'bfloat16' if on == 'bf16' else 'float16'}",
        )


def _checkpointing(training: Mapping[str, Any]) -> Iterator[Fault]:
    new, old = CHECKPOINTING
    for suffix in ("", "_kwargs"):
        given = [training.get(f"{name}{suffix}") for name in CHECKPOINTING]
        if None not in given and given[0] != given[1]:
            yield _training(f"{old}{suffix}", f"contradicts {new}{suffix}", "remove it")
    for name in CHECKPOINTING:
        kwargs = training.get(f"{name}_kwargs")
        if isinstance(kwargs, str):
            yield _training(f"{name}_kwargs", "must be a mapping, not text")
        elif isinstance(kwargs, Mapping) and kwargs.get("use_reentrant", False) is not False:
            yield Fault(
                ("training", f"{name}_kwargs", "use_reentrant"),
                "reentrant checkpointing is not exact over a resume",
                "remove it: use_reentrant is false here",
            )


def _reporting(training: Mapping[str, Any]) -> Iterator[Fault]:
    given = training.get("report_to")
    for name in [given] if isinstance(given, str) else given or []:
        if name not in ("none", "tensorboard", "wandb"):
            hint = "use tensorboard, wandb or none"
            yield _training("report_to", f"{name!r} is not written", hint)


def _workers(training: Mapping[str, Any]) -> Iterator[Fault]:
    if training.get("dataloader_num_workers", 0):
        return
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if training.get(name):
            yield _training(
                name, "needs dataloader_num_workers of at least 1", "set it, or remove this"
            )


def _evaluation(job: JobSpec) -> Iterator[Fault]:
    training = job.training.given()
    strategy = training.get("eval_strategy")
    if job.checkpoint.keep_best and (job.data.eval is None or strategy in (None, "no")):
        yield Fault(
            ("checkpoint", "keep_best"),
            "nothing is evaluated, so none is the best",
            "set data.eval and training.eval_strategy, or remove it",
        )
    asked = [name for name in ("eval_steps", "eval_on_start", "eval_delay") if training.get(name)]
    if strategy not in (None, "no"):
        asked.insert(0, "eval_strategy")
    if job.data.eval is None:
        for name in asked:
            yield _training(name, "there is no evaluation data", "set data.eval, or remove it")
        if training.get("lr_scheduler_type") in rates.BY_METRIC:
            yield _training("lr_scheduler_type", "needs evaluation", "set data.eval")
        return
    if strategy == "no" and training.get("lr_scheduler_type") in rates.BY_METRIC:
        hint = "set training.eval_strategy to steps or epoch"
        yield _training("lr_scheduler_type", "needs evaluation", hint)
    if strategy is None:
        yield Fault(
            ("data", "eval"),
            "is never used",
            "set training.eval_strategy to steps or epoch (or to no)",
        )
    elif strategy != "steps" and training.get("eval_steps"):
        yield _training("eval_steps", f"contradicts eval_strategy: {strategy}", "use steps")
