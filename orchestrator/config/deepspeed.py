"""The DeepSpeed configuration of a job: made from a stage, or the user's, checked. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config import argtable
from orchestrator.config.check_training import zero3_fault
from orchestrator.config.faults import Fault, Path
from orchestrator.config.suggest import nearest
from orchestrator.contract.plan import BatchPlan

DEFAULT_STAGE = 2

_OURS: Mapping[str, str] = {
    "checkpoint": "checkpoints are ours: use checkpoint in the job file",
    "nebula": "checkpoints are ours: use checkpoint in the job file",
    "datastates": "checkpoints are ours: use checkpoint in the job file",
    "elasticity": "the shape of a run never changes: remove it",
    "autotuning": "the batch plan is fixed for a run: remove it",
    "curriculum_learning": "the order of the samples is ours: remove it",
    "data_efficiency": "the order of the samples is ours: remove it",
    "amp": "use training.bf16 or training.fp16",
    "scheduler": "use training.lr_scheduler_type, which every checkpoint restores",
    "dataloader_drop_last": "the incomplete last global batch is always dropped: remove it",
}
_KNOWN = (
    *_OURS,
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("zero_optimization", "gradient_clipping", "optimizer", "bf16", "fp16", "steps_per_print"),
    *("prescale_gradients", "gradient_predivide_factor", "communication_data_type", "data_types"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "activation_checkpointing", "flops_profiler", "aio"),
    *("comms_logger", "compile", "seq_parallel_communication_data_type", "torch_autocast"),
    *("tensorboard", "csv_monitor", "wandb", "comet", "sparse_gradients", "disable_allgather"),
)


def from_stage(stage: int) -> dict[str, Any]:
    """The configuration of a ZeRO stage.

    `auto` values are filled by the Trainer; there is no optimizer block, so that the Trainer
    makes the optimizer that `training.optim` names.
    """
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {"zero_optimization": zero, **_base()}


def _base() -> dict[str, Any]:
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }


def merged(user: Mapping[str, Any], stage: int | None) -> dict[str, Any]:
    """The user's configuration; what it leaves open is `auto`, and the batch sizes always are.

    The batch sizes stand in the batch plan, which may shrink the micro-batch later.
    """
    config = {**_base(), **copy.deepcopy(dict(user))}
    zero = config.setdefault("zero_optimization", {})
    zero.setdefault("stage", stage or DEFAULT_STAGE)
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", _ACCUMULATION):
        config[name] = "auto"
    return config


_ACCUMULATION = "gradient_accumulation_steps"


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
        *_names(user),
        *_zero(user, quantized, stage),
        *_batch(user, batch),
        *_matches(user, training),
        *_optimizer(user, training),
    )


def _names(user: Mapping[str, Any]) -> Iterator[Fault]:
    for name in user:
        if name in _OURS:
            yield Fault((name,), "cannot be set here", _OURS[name])
        elif name not in _KNOWN and (near := nearest(name, _KNOWN)):
            yield Fault((name,), "unknown field", f"did you mean {near}?")


def _zero(user: Mapping[str, Any], quantized: bool, stage: int | None) -> Iterator[Fault]:
    zero = user.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield Fault(("zero_optimization",), "must be an object")
        return
    path: Path = ("zero_optimization", "stage")
    own = zero.get("stage", stage or DEFAULT_STAGE)
    if isinstance(own, bool) or own not in (1, 2, 3):
        yield Fault(path, f"must be 1, 2 or 3, not {argtable.shown(own)}")
    elif stage is not None and own != stage:
        yield Fault(path, f"{own} contradicts deepspeed.stage: {stage}", "give it once")
    elif own == 3 and quantized:
        yield zero3_fault(("zero_optimization", "stage"))
    for part in ("offload_optimizer", "offload_param"):
        offload = zero.get(part)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            yield Fault(
                ("zero_optimization", part, "device"),
                "what lies on a local disk is not in the checkpoint",
                "use cpu",
            )


def _batch(user: Mapping[str, Any], batch: BatchPlan) -> Iterator[Fault]:
    micro = user.get("train_micro_batch_size_per_gpu", "auto")
    if micro not in ("auto", batch.micro):
        yield Fault(
            ("train_micro_batch_size_per_gpu",),
            f"{argtable.shown(micro)} contradicts "
            f"training.per_device_train_batch_size: {batch.micro}",
            "use auto",
        )
    accumulation = user.get(_ACCUMULATION, "auto")
    if accumulation not in ("auto", batch.accumulation):
        yield Fault(
            (_ACCUMULATION,),
            f"{argtable.shown(accumulation)} contradicts "
            f"training.gradient_accumulation_steps: {batch.accumulation}",
            "use auto",
        )
    total = user.get("train_batch_size", "auto")
    if total not in ("auto", batch.global_batch):
        yield Fault(
            ("train_batch_size",),
            f"the global batch {argtable.shown(total)} is not {batch.micro} (micro-batch) x "
            f"{batch.accumulation} (accumulation) x {batch.world_size} (GPUs) "
            f"= {batch.global_batch}",
            "use auto, or change the factors",
        )


def _matches(user: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Fault]:
    for kind in ("bf16", "fp16"):
        section = user.get(kind, {})
        if not isinstance(section, dict):
            yield Fault((kind,), "must be an object")
            continue
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
    yield Fault(path, f"{argtable.shown(given)} contradicts training.{word}: {value}", "use auto")
