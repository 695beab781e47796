"""What a run recorded against what its hardware computes when it is asked again. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import apart
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.proof import NAMES, of_manifest
from orchestrator.domain.proof import Check

SAMPLES = "samples"
"""Name of the check that is made of any step that is compared."""
Curves = Mapping[int, Sequence[StepMetrics]]
"""Of each rank."""


@dataclass(frozen=True, slots=True)
class Window:
    """The steps that are computed again: those after `first`, up to `last`."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first < step <= self.last


def choose_window(steps: Sequence[int], saved: Sequence[int], count: int) -> Window | None:
    """From the newest of the saved steps that anything was recorded after, else from the start.

    steps: recorded ones; count: how many to compute again at most. None: nothing was recorded.
    """
    newest = max(steps, default=0)
    if newest == 0:
        return None
    first = max((step for step in saved if step < newest), default=0)
    return Window(first, min(first + count, newest))


def step_checks(
    recorded: Curves, computed: Curves, window: Window, tolerance: float
) -> Iterator[Check]:
    """Samples, learning rates and losses of the window's steps, on every rank."""
    pairs = [
        (before, now)
        for rank, rows in sorted(recorded.items())
        for before in rows
        if before.step in window and (now := _row(computed, rank, before.step)) is not None
    ]
    wanted = len(recorded) * (window.last - window.first)
    if len(pairs) < wanted:
        yield Check("steps", "not compared", f"{len(pairs)} of {wanted} lines are on both sides")
    if pairs:
        yield _alike(SAMPLES, [(b.step, b.samples == n.samples) for b, n in pairs])
        rates = [(b.step, b.learning_rate == n.learning_rate) for b, n in pairs]
        yield _alike("learning rates", rates)
        yield _losses(pairs, tolerance)


def _row(curves: Curves, rank: int, step: int) -> StepMetrics | None:
    return next((row for row in curves.get(rank, ()) if row.step == step), None)


def _alike(name: str, found: Sequence[tuple[int, bool]]) -> Check:
    wrong = [step for step, equal in found if not equal]
    if wrong:
        return Check(name, "differs", f"first at step {wrong[0]}")
    return Check(name, "equal", f"of {len(found)} lines")


def _losses(pairs: Sequence[tuple[StepMetrics, StepMetrics]], tolerance: float) -> Check:
    worst, count = 0.0, 0
    for before, now in pairs:
        if len(before.micro_losses) != len(now.micro_losses):
            detail = f"step {before.step} was computed with another batch plan"
            return Check("losses", "not compared", detail)
        far = max(map(apart, before.micro_losses, now.micro_losses), default=0.0)
        if far > tolerance:
            allowed = "bit for bit" if tolerance == 0 else f"{tolerance:g}"
            return Check(
                "losses", "differs", f"{far:.3g} apart at step {before.step}, allowed: {allowed}"
            )
        worst, count = max(worst, far), count + len(before.micro_losses)
    how = "bit for bit" if worst == 0 else f"within {worst:.2g}"
    return Check("losses", "equal", f"{count} micro-batches, {how}")


def checkpoint_checks(
    recorded: CheckpointManifest, computed: CheckpointManifest, tolerance: float
) -> Iterator[Check]:
    """Hashes of two checkpoints of one step; only where the losses must be equal bit for bit."""
    before, now = of_manifest(recorded), of_manifest(computed)
    for key, name in NAMES.items():
        title = f"{name} at step {recorded.step}"
        if tolerance:
            yield Check(title, "not compared", "a hash has no tolerance")
        elif before[key] == now[key]:
            yield Check(title, "equal", "to the run's own checkpoint")
        else:
            yield Check(title, "differs", f"recorded {before[key]}, computed {now[key]}")
