"""The DeepSpeed configuration of a job: made from a stage, or the user's, checked. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.config.arguments.deepspeed import OURS, DeepSpeedFile
from orchestrator.config.checks.training import zero3_fault
from orchestrator.config.faults import Fault, Path, shown
from orchestrator.config.reading.explain import validated
from orchestrator.config.values.suggest import did_you_mean
from orchestrator.contract.plan import BatchPlan

DEFAULT_STAGE = 2

_ACCUMULATION = "gradient_accumulation_steps"


def from_stage(stage: int, *, fp16: bool) -> dict[str, Any]:
    """The configuration of a ZeRO stage, for a training in half precision if `fp16`.

    `auto` values are filled by the Trainer; there is no optimizer block, so that the Trainer
    makes the optimizer that `training.optim` names.
    """
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        _ACCUMULATION: "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    if fp16:
        config["fp16"] = {"enabled": "auto"}
    return config


def merged(user: Mapping[str, Any], stage: int | None, *, fp16: bool) -> dict[str, Any]:
    """The user's configuration; what it leaves open is `auto`, and the batch sizes always are.

    The batch sizes stand in the batch plan, which may shrink the micro-batch later.
    """
    made = from_stage(stage or DEFAULT_STAGE, fp16=fp16)
    config = {**made, **copy.deepcopy(dict(user))}
    zero = config["zero_optimization"]
    zero.setdefault("stage", stage or DEFAULT_STAGE)
    if zero.get("offload_optimizer") and "optimizer" not in config:
        # The optimizer is the Trainer's, and DeepSpeed's own one for CPUs would be compiled.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", _ACCUMULATION):
        config[name] = "auto"
    return config


def faults(
    user: Any,
    *,
    training: Mapping[str, Any],
    batch: BatchPlan,
    quantized: bool,
    stage: int | None,
) -> tuple[Fault, ...]:
    """What is wrong with a user's configuration; paths start at its top.

    `training` holds the job's values with defaults filled in; `stage` is `deepspeed.stage`.
    """
    if not isinstance(user, dict):
        return (Fault((), "must be a JSON object"),)
    return (
        *validated(DeepSpeedFile, user, _unknown)[1],
        *_zero(user, quantized, stage),
        *_batch(user, batch),
        *_matches(user, training),
        *_optimizer(user, training),
    )


def _unknown(path: Path, known: Sequence[str]) -> Fault:
    name = str(path[-1])
    if len(path) == 1 and name in OURS:
        return Fault(path, "cannot be set here", OURS[name])
    whose = "ZeRO" if path[0] == "zero_optimization" else "DeepSpeed"
    hint = did_you_mean(name, known) or f"it is no setting of {whose}: remove it"
    return Fault(path, "unknown field", hint)


def _zero(user: Mapping[str, Any], quantized: bool, stage: int | None) -> Iterator[Fault]:
    zero = _mapping(user, "zero_optimization")
    yield from _stage(zero.get("stage", stage or DEFAULT_STAGE), quantized, stage)
    for part in ("offload_optimizer", "offload_param"):
        if _mapping(zero, part).get("device") == "nvme":
            yield Fault(
                ("zero_optimization", part, "device"),
                "what lies on a local disk is not in the checkpoint",
                "use cpu",
            )


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A block, or an empty one where something else stands, which the model refuses."""
    found = holder.get(name, {})
    return found if isinstance(found, dict) else {}


def _stage(own: Any, quantized: bool, stage: int | None) -> Iterator[Fault]:
    path = ("zero_optimization", "stage")
    if type(own) is not int or own not in (1, 2, 3):
        yield Fault(path, f"must be 1 or 2, not {shown(own)}")
    elif stage is not None and own != stage:
        yield Fault(path, f"{own} contradicts deepspeed.stage: {stage}", "give it once")
    elif own == 3:
        yield zero3_fault(path, quantized=quantized)


def _batch(user: Mapping[str, Any], batch: BatchPlan) -> Iterator[Fault]:
    micro = user.get("train_micro_batch_size_per_gpu", "auto")
    if micro not in ("auto", batch.micro):
        yield Fault(
            ("train_micro_batch_size_per_gpu",),
            f"{shown(micro)} contradicts training.per_device_train_batch_size: {batch.micro}",
            "use auto",
        )
    accumulation = user.get(_ACCUMULATION, "auto")
    if accumulation not in ("auto", batch.accumulation):
        yield Fault(
            (_ACCUMULATION,),
            f"{shown(accumulation)} contradicts "
            f"training.gradient_accumulation_steps: {batch.accumulation}",
            "use auto",
        )
    total = user.get("train_batch_size", "auto")
    if total not in ("auto", batch.global_batch):
        yield Fault(
            ("train_batch_size",),
            f"the global batch {shown(total)} is not {batch.micro} (micro-batch) x "
            f"{batch.accumulation} (accumulation) x {batch.world_size} (GPUs) "
            f"= {batch.global_batch}",
            "use auto, or change the factors",
        )


def _matches(user: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Fault]:
    for kind in ("bf16", "fp16"):
        section = _mapping(user, kind)
        wanted = bool(training.get(kind) or training.get(f"{kind}_full_eval"))
        yield from _match((kind, "enabled"), section.get("enabled", "auto"), wanted, kind)
    clipping = user.get("gradient_clipping", "auto")
    wanted_norm = training["max_grad_norm"]
    yield from _match(("gradient_clipping",), clipping, wanted_norm, "max_grad_norm")


def _optimizer(user: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Fault]:
    if "optimizer" not in user:
        return
    optimizer = user["optimizer"]
    params = optimizer.get("params", {}) if isinstance(optimizer, dict) else None
    if not isinstance(params, dict):
        yield Fault(("optimizer",), "must be an object with type and params")
        return
    kind = optimizer.get("type")
    if kind not in ("Adam", "AdamW") or not str(training["optim"]).startswith("adamw_torch"):
        yield Fault(
            ("optimizer",),
            f"contradicts training.optim: {training['optim']}",
            "remove it: training.optim names the optimizer",
        )
        return
    wanted = {
        "lr": ("learning_rate", training["learning_rate"]),
        "betas": ("adam_beta1 and adam_beta2", [training["adam_beta1"], training["adam_beta2"]]),
        "eps": ("adam_epsilon", training["adam_epsilon"]),
        "weight_decay": ("weight_decay", training["weight_decay"]),
    }
    for name, (word, value) in wanted.items():
        path: Path = ("optimizer", "params", name)
        yield from _match(path, params.get(name, "auto"), value, word)


def _match(path: Path, given: Any, wanted: Any, word: str) -> Iterator[Fault]:
    if given == "auto" or (given == wanted and isinstance(given, bool) == isinstance(wanted, bool)):
        return
    value = str(wanted).lower() if isinstance(wanted, bool) else wanted
    yield Fault(path, f"{shown(given)} contradicts training.{word}: {value}", "use auto")
