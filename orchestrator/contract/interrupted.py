"""What ties an attempt to an earlier one: micro-batches that a stop gave up are computed again.

A stop in the middle of a step throws away what the step's first micro-batches have computed.
Each rank tells their losses (event `interrupted`); the next attempt that begins at the same
state must get the same ones, without computing anything for that purpose alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.contract.jsonio import Json, MalformedJson, from_json

ALLOW = "losses"
"""Name with which `--allow-change` leaves the comparison out."""
GPU_TOLERANCE = 0.01
"""Relative difference of one micro-batch's loss that is put down to a GPU: 8-bit mantissas and
kernels that add in another order. A wrong picture, rate or random state moves it far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One micro-batch of one rank that went forward and backward."""

    samples: tuple[int, ...]
    loss: str
    """float.hex()"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The micro-batches of one rank that a stop gave up."""

    attempt: int
    rank: int
    step: int
    """The last step that was done: they belong to the next one."""
    micro_batches: tuple[MicroBatch, ...]
    conditions: str
    """Of that attempt: see domain.recompute.conditions. Others need not give the same losses."""


def read_interrupted(data: Json) -> Interrupted | None:
    """The data of an event; None where it is not of this shape."""
    try:
        return from_json(Interrupted, data)
    except MalformedJson:
        return None


def loss_tolerance(device: str) -> float:
    """Relative; recorded in every manifest. 0: bit for bit. `device` is torch's type of it."""
    return 0.0 if device == "cpu" else GPU_TOLERANCE


def apart(expected: str, found: str) -> float:
    """Relative difference of two losses in hex: 0 for equal bits, inf where just one is finite."""
    if expected == found:
        return 0.0
    first, second = float.fromhex(expected), float.fromhex(found)
    if not (math.isfinite(first) and math.isfinite(second)):
        return 0.0 if repr(first) == repr(second) else math.inf
    return abs(first - second) / (max(abs(first), abs(second)) or 1.0)


def difference(
    expected: MicroBatch, samples: Sequence[int], loss: str, tolerance: float
) -> str | None:
    """How a micro-batch differs from the one expected, in words; None if it does not."""
    if tuple(samples) != expected.samples:
        return f"samples are {list(samples)}, they were {list(expected.samples)}"
    away = apart(expected.loss, loss)
    if away > tolerance or math.isnan(away):
        limit = f", the tolerance is {tolerance:g}" if tolerance else ""
        was, now = float.fromhex(expected.loss), float.fromhex(loss)
        return f"loss is {now!r}, it was {was!r} ({away:.3g} apart{limit})"
    return None
