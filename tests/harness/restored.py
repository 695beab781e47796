"""Looks at the state with which an attempt of the real trainer begins, and spoils it on trial.

QVL_PROBE_PLANT is a JSON object {attempt: fault}: that attempt really suffers the fault (PLANTS).

Under QVL_PROBE_OUT: `start-<attempt>-<rank>.json`, what the first step will find; and where
QVL_PROBE_FAULTS names the attempt, `faults-<rank>.json`: [fault, refusal or null] pairs. Each
fault is planted after a complete load, which is then repeated; so the attempt itself goes on
from the true state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from orchestrator.contract import env
from orchestrator.errors import ContractRefused
from tests.harness.probe import before
from trainer.base_model.modeling import trainable_digest
from trainer.checkpoint import restore
from trainer.data.sampler import RankBatchSampler
from trainer.loop import training as loop
from trainer.process.rank import Rank
from trainer.state import rng

SPOILT_RANK = 1
"""The other one stays right; neither may go on."""


def watch(rank: Rank, folder: Path) -> None:
    """Record and spoil from now on."""
    before(loop.OrchestratedTrainer, "_run_epoch", lambda t, *_: record(t, rank, folder))
    spoil_on_trial(rank, folder)
    if rank.number == SPOILT_RANK:
        for plant in PLANTS.values():
            plant()


def record(trainer: Any, rank: Rank, folder: Path) -> None:
    """What the first step of this attempt will find."""
    path = folder / f"start-{os.environ[env.ATTEMPT]}-{rank.number}.json"
    if path.exists():
        return
    moments = trainer.deepspeed.optimizer.optimizer.state.values()
    value = {
        "step": trainer.state.global_step,
        "engine_steps": trainer.deepspeed.global_steps,
        "scheduler_step": trainer.lr_scheduler.last_epoch,
        "adapter_digest": trainable_digest(trainer.model),
        "moments": sum(float(s[k].abs().sum()) for s in moments for k in ("exp_avg", "exp_avg_sq")),
    }
    path.write_text(json.dumps(value))


Spoil = Callable[[Any], None]


def _adapter(trainer: Any) -> None:
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.data.view(-1)[0] += 1e-6


def _moments(trainer: Any) -> None:
    state = next(iter(trainer.deepspeed.optimizer.optimizer.state.values()))
    state["exp_avg"].view(-1)[0] += 1e-9


def _master_weights(trainer: Any) -> None:
    trainer.deepspeed.optimizer.single_partition_of_fp32_groups[0].data[0] += 1e-6


def _rate(trainer: Any) -> None:
    trainer.optimizer.param_groups[0]["lr"] *= 1 + 1e-9


def _schedule(trainer: Any) -> None:
    trainer.lr_scheduler.last_epoch += 1


STATE_FAULTS: dict[str, Spoil] = {
    "adapter tensor": _adapter,
    "optimizer moments": _moments,
    "master weights": _master_weights,
    "learning rate": _rate,
    "schedule": _schedule,
}


def planted(fault: str) -> bool:
    """Whether this attempt suffers `fault`."""
    return json.loads(os.environ.get("QVL_PROBE_PLANT", "{}")).get(os.environ[env.ATTEMPT]) == fault


def _plant_state(fault: str, spoil: Spoil) -> Callable[[], None]:
    """After the last thing that is loaded, before it is compared."""

    def act(trainer: Any, *_: Any) -> None:
        if planted(fault):
            spoil(trainer)

    return lambda: followed_by(loop.OrchestratedTrainer, "_load_scaler", act)


def _plant_random() -> None:
    inner = rng.restore

    def restore_and_draw(state: Any) -> None:
        inner(state)
        if planted("random"):
            torch.rand(1)

    rng.restore = restore_and_draw


def _plant_order() -> None:
    """The loader begins one micro-batch too late, as an index that is off by one would have it."""
    inner = RankBatchSampler.__iter__

    def late(self: RankBatchSampler) -> Iterator[list[int]]:
        batches = list(inner(self))
        yield from batches[1:] + batches[:1] if planted("order") else batches

    RankBatchSampler.__iter__ = late  # type: ignore[method-assign]


def _plant_pictures() -> None:
    """What no digest of the state sees: the same samples with other contents."""

    def act(_trainer: Any, _model: Any, inputs: Any, *_: Any) -> None:
        if planted("pictures"):
            inputs["pixel_values"] = inputs["pixel_values"] * 1.5

    before(loop.OrchestratedTrainer, "training_step", act)


PLANTS: dict[str, Callable[[], None]] = {
    "rate": _plant_state("rate", _rate),
    "adapter": _plant_state("adapter", _adapter),
    "random": _plant_random,
    "order": _plant_order,
    "pictures": _plant_pictures,
}


def followed_by(cls: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the same arguments after each call of a method."""
    inner = getattr(cls, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(self, *args, **kwargs)
        act(self, *args)
        return result

    setattr(cls, name, wrapped)


class Spoiler:
    """Stands before the two functions that restore, and lets them first fail in every way."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        self._spoils = rank.number == SPOILT_RANK
        self._report = folder / f"faults-{rank.number}.json"
        self._found: list[tuple[str, str | None]] = []
        self._load_engine, self._load_rng = restore.load_engine, restore.load_rng

    def engine(self, trainer: Any, *args: Any, **kwargs: Any) -> restore.Found:
        """For restore.load_engine."""
        for name, spoil in STATE_FAULTS.items() if spoiling() else ():
            with after(trainer, "_load_scaler", self._act(spoil, trainer)):
                self._try(name, lambda: self._load_engine(trainer, *args, **kwargs))
        return self._load_engine(trainer, *args, **kwargs)

    def random_states(self, *args: Any) -> str:
        """For restore.load_rng."""
        if spoiling():
            with after(rng, "restore", self._act(torch.rand, 1)):
                self._try("random states", lambda: self._load_rng(*args))
            self._report.write_text(json.dumps(self._found))
        return self._load_rng(*args)

    def _act(self, spoil: Callable[..., Any], *args: Any) -> Callable[[], object]:
        return lambda: spoil(*args) if self._spoils else None

    def _try(self, name: str, load: Callable[[], object]) -> None:
        try:
            load()
            self._found.append((name, None))
        except ContractRefused as fault:
            self._found.append((name, fault.message))


def spoil_on_trial(rank: Rank, folder: Path) -> None:
    """Wrap the two functions that restore."""
    spoiler = Spoiler(rank, folder)
    restore.load_engine, restore.load_rng = spoiler.engine, spoiler.random_states


def spoiling() -> bool:
    return os.environ.get("QVL_PROBE_FAULTS") == os.environ[env.ATTEMPT]


@contextmanager
def after(owner: Any, name: str, act: Callable[[], object]) -> Iterator[None]:
    """While inside, `owner.name` is followed by `act`."""
    inner = getattr(owner, name)

    def wrapped(*args: Any) -> None:
        inner(*args)
        act()

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, inner)
