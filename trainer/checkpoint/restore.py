"""Loads a checkpoint into a prepared Trainer and proves that it arrived.

The files are verified already; what is compared here is the state in memory with what the
manifest recorded when it was saved. Every difference is a ContractRefused that names it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from orchestrator.contract import layout
from orchestrator.contract.jsonio import MalformedJson, loads
from orchestrator.contract.manifest import CheckpointManifest, decode_manifest
from orchestrator.contract.regular import read_regular
from orchestrator.errors import ContractRefused
from trainer.base_model.modeling import trainable_digest
from trainer.checkpoint import engine
from trainer.checkpoint.state import ADAPTER, loss_file
from trainer.data.sampler import RankBatchSampler, rank_block, step_indices
from trainer.state import rng
from trainer.state.window import LossState


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one rank finds in memory after a load."""

    learning_rate_hex: str
    """Of the optimizer's next step."""
    schedule_hex: str | None
    """The same by the schedule's closed form; None where it has none, or may differ."""
    adapter_digest: str
    state_digest: str
    """Of the optimizer's state and the master weights of this rank."""


def read_manifest(directory: str) -> CheckpointManifest:
    """The manifest of a checkpoint directory. Raises ContractRefused if there is none."""
    try:
        data = read_regular(Path(directory) / layout.MANIFEST)
        return decode_manifest(data)
    except (OSError, MalformedJson) as fault:
        raise ContractRefused(f"the checkpoint's manifest cannot be read: {fault}") from None


@contextmanager
def only_named(directory: str, manifest: CheckpointManifest) -> Iterator[str]:
    """The checkpoint without what lies beside its verified files: a loader that looks for
    names of its own (`scaler.pt`, `mp_rank_*`) finds nothing that nobody has verified.
    """
    with tempfile.TemporaryDirectory(prefix="qvl-load-") as folder:
        for entry in manifest.files:
            link = Path(folder) / entry.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(directory).absolute() / entry.path)
        yield folder


def load_engine(
    trainer: Any,
    directory: str,
    manifest: CheckpointManifest,
    rank: int,
    *,
    schedule_may_differ: bool,
) -> Found:
    """Restore weights, optimizer and scheduler; tells what is there now. Raises ContractRefused.

    schedule_may_differ: the user allowed a change that may bend the learning rate's curve
    """
    rates = list(getattr(trainer.lr_scheduler, "base_lrs", ()))
    with only_named(directory, manifest) as named, _readable("the checkpoint"):
        names = engine.load(trainer.deepspeed, named)
        trainer._load_optimizer_and_scheduler(named)
        trainer._load_scaler(named)
    _check_names(trainer.model, names)
    adapter = trainable_digest(trainer.model)
    _same("trainable weights", adapter, manifest.adapter_digest)
    if rank >= len(manifest.rank_digests):
        raise ContractRefused(f"the checkpoint has no state of rank {rank}")
    # The rate is part of the optimizer's state too: named first, it gets its own words.
    rate = _rate(trainer).hex()
    _same("learning rate", rate, manifest.learning_rate_hex)
    state = engine.state_digest(trainer.deepspeed)
    _same(f"optimizer state of rank {rank}", state, manifest.rank_digests[rank])
    closed = None
    if schedule_may_differ:
        _use_rates(trainer, rates)
    else:
        closed = _check_schedule(trainer, manifest)
    return Found(
        learning_rate_hex=rate, schedule_hex=closed, adapter_digest=adapter, state_digest=state
    )


def load_rng(directory: str, manifest: CheckpointManifest, rank: int, world_size: int) -> str:
    """Restore this rank's random states; their digest. Raises ContractRefused."""
    path = Path(directory) / rng.file_name(rank, world_size)
    try:
        with safe_globals(), _readable(path.name):
            rng.restore(torch.load(path, weights_only=True))
    except (OSError, RuntimeError, KeyError) as fault:
        raise ContractRefused(f"random states of rank {rank}: {fault}") from None
    found = rng.digest(rng.capture(distributed=world_size > 1))
    _same(f"random states of rank {rank}", found, manifest.rng_digests[rank])
    return found


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """A type that no load creates is said in one line, and is no reason to try again."""
    try:
        yield
    except engine.Refused as fault:
        named = re.search(r"GLOBAL (\S+)", str(fault))
        words = f"the type {named[1]}" if named else "what is no pickle of plain types"
        raise ContractRefused(
            f"{what} holds {words}, which is never loaded",
            hint="`qvl-orchestrate status` names an older checkpoint to go on from",
        ) from fault


def check_order(samples: Sequence[int], sampler: RankBatchSampler, step: int) -> None:
    """Compare what the loader gives for the step after `step` with what the data order says.

    The loader skips its way there; the order is a function of the step's number alone. Raises
    ContractRefused.
    """
    epoch, position = divmod(step, sampler.steps)
    plan = sampler.plan
    indices = step_indices(sampler.seed, epoch, position, sampler.samples, plan.global_batch)
    wanted = rank_block(indices, sampler.rank, plan.world_size)
    if tuple(samples) != wanted[: len(samples)]:
        raise ContractRefused(
            f"samples of step {step + 1} on rank {sampler.rank}: the loader gives "
            f"{list(samples)}, the data order is {list(wanted)}",
            hint="report this; it is a fault of the trainer",
        )


def load_loss(directory: str, rank: int) -> LossState | None:
    """The loss accounting; None in a checkpoint that a plain Trainer wrote."""
    path = Path(directory) / loss_file(rank)
    return LossState.from_json(loads(read_regular(path))) if path.exists() else None


def load_weights_only(model: Any, directory: str) -> None:
    """Start from a checkpoint's adapter alone. Raises ContractRefused where it does not fit."""
    result = set_peft_model_state_dict(model, load_file(str(Path(directory) / ADAPTER)))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise ContractRefused(
            f"the adapter does not fit this model: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} not known"
        )


def _check_names(model: Any, loaded: frozenset[str]) -> None:
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    missing = sorted(trainable - loaded)
    extra = sorted(loaded & frozen)
    if missing or extra:
        raise ContractRefused(
            f"the checkpoint's weights are not the trainable ones: {len(missing)} missing "
            f"({', '.join(missing[:3])}), {len(extra)} frozen ({', '.join(extra[:3])})"
        )


def _rate(trainer: Any) -> float:
    """What the optimizer will use at its next step."""
    return float(trainer.optimizer.param_groups[0]["lr"])


def _use_rates(trainer: Any, rates: list[Any]) -> None:
    """Go on with the learning rates of the job, where a scheduler would bring back the old ones."""
    scheduler = trainer.lr_scheduler
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return
    scheduler.base_lrs = rates
    now = [
        rate * shape(scheduler.last_epoch)
        for rate, shape in zip(rates, scheduler.lr_lambdas, strict=True)
    ]
    scheduler._last_lr = now
    for optimizer in (trainer.optimizer, scheduler.optimizer):
        for group, rate, first in zip(optimizer.param_groups, now, rates, strict=True):
            group["lr"], group["initial_lr"] = rate, first


def _check_schedule(trainer: Any, manifest: CheckpointManifest) -> str | None:
    """A closed-form schedule gives the rate as a function of the step alone: that rate."""
    scheduler = trainer.lr_scheduler
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return None
    rate = scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch)
    name = f"learning rate of the schedule at step {scheduler.last_epoch}"
    _same(name, float(rate).hex(), manifest.learning_rate_hex)
    return float(rate).hex()


def _same(name: str, found: str, recorded: str) -> None:
    if found != recorded:
        raise ContractRefused(
            f"{name} after the load: {found}, the checkpoint recorded {recorded}",
            hint="`qvl-orchestrate status` names an older checkpoint to go on from",
        )
