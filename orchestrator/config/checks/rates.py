"""Optimizers and schedules of the learning rate: what of them is trained, saved and resumed here.

Every one that is let through is trained, preempted and resumed by a test. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.faults import Fault
from orchestrator.config.values.suggest import listed, nearest

_UNUSABLE_OPTIMIZERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"paged_.*"), "its pages cannot be saved within the grace"),
    (re.compile(r".*_layerwise|lomo|adalomo"), "it steps inside the backward pass"),
    (re.compile(r".*_(xla|npu_fused)"), "it needs another kind of device"),
    (
        re.compile(r"adamw_(anyprecision|torch_[48]bit)|(galore|apollo|schedule_free)_.*"),
        "it needs a package that is not installed with this program, and is not tested",
    ),
    (
        re.compile(r"grokadamw|stable_adamw"),
        "it needs a package that is not installed with this program, and is not tested",
    ),
)
_SHAPES = ("linear", "cosine", "1-sqrt")
_METRIC = (
    *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"),
)
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the evaluations."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": _METRIC,
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type"),
        *("min_lr_ratio", "num_cycles"),
    ),
    "greedy": (*_METRIC, "max_lr", "warmup", "verbose", "smooth", "window_size", "reset_start"),
}
"""Every schedule, and what `lr_scheduler_kwargs` may say to it."""


def faults(training: Mapping[str, Any]) -> Iterator[Fault]:
    """What no attempt could train or resume."""
    yield from _optimizer(training)
    yield from _warmup(training)
    yield from _settings(training)
    yield from _metric(training)


def _training(name: str, message: str, hint: str | None = None) -> Fault:
    return Fault(("training", name), message, hint)


def _optimizer(training: Mapping[str, Any]) -> Iterator[Fault]:
    optim = training.get("optim")
    for pattern, why in _UNUSABLE_OPTIMIZERS:
        if isinstance(optim, str) and pattern.fullmatch(optim):
            plain = optim.removeprefix("paged_")
            use = plain if plain != optim and plain.endswith("8bit") else "adamw_torch"
            yield _training("optim", f"{optim} cannot be used: {why}", f"use {use}")
            return


def _warmup(training: Mapping[str, Any]) -> Iterator[Fault]:
    if training.get("warmup_steps") and training.get("lr_scheduler_type") == "constant":
        yield _training(
            "warmup_steps",
            "a constant schedule has no warm-up",
            "use lr_scheduler_type: constant_with_warmup",
        )


def _settings(training: Mapping[str, Any]) -> Iterator[Fault]:
    """An unknown or a missing setting would end every attempt before its first step."""
    kind = training.get("lr_scheduler_type", "linear")
    given = _mapping(training.get("lr_scheduler_kwargs"))
    if given is None:
        yield _training("lr_scheduler_kwargs", "must be a mapping")
        return
    if kind not in SETTINGS:
        return
    for name in given:
        if name not in SETTINGS[kind]:
            near = nearest(name, SETTINGS[kind])
            known = listed(SETTINGS[kind])
            hint = f"did you mean {near}?" if near else f"use {known}" if known else "remove it"
            path = ("training", "lr_scheduler_kwargs", str(name))
            yield Fault(path, f"the schedule {kind} has no such setting", hint)
    yield from _needed(kind, given, float(training.get("learning_rate", 5e-5)))


def _needed(kind: str, given: Mapping[str, Any], rate: float) -> Iterator[Fault]:
    name = "lr_scheduler_kwargs"
    least = [n for n in ("min_lr", "min_lr_rate") if given.get(n) is not None]
    if kind in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and len(least) != 1:
        said = "needs min_lr or min_lr_rate" if not least else "takes one of min_lr and min_lr_rate"
        yield _training(name, f"the schedule {kind} {said}", "for example {min_lr_rate: 0.1}")
    if kind == "warmup_stable_decay" and "num_decay_steps" not in given:
        hint = "for example {num_decay_steps: 100}"
        yield _training(name, f"the schedule {kind} needs num_decay_steps", hint)
    for shape in ("warmup_type", "decay_type"):
        if shape in SETTINGS[kind] and given.get(shape, "linear") not in _SHAPES:
            path = ("training", name, shape)
            yield Fault(path, f"{given[shape]!r} is not a choice", f"one of {listed(_SHAPES)}")
    end = given.get("lr_end", 1e-7)
    if kind == "polynomial" and isinstance(end, int | float) and end >= rate:
        place = ("training", name, "lr_end")
        yield Fault(place, f"{end:g} is not below learning_rate: {rate:g}", "use a smaller one")


def _metric(training: Mapping[str, Any]) -> Iterator[Fault]:
    metric = training.get("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss"):
        hint = "remove it: the loss on data.eval is what is computed"
        yield _training("metric_for_best_model", f"{metric!r} is not computed", hint)


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Also from JSON, as TrainingArguments takes it; None if it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return {} if value is None else value if isinstance(value, Mapping) else None
