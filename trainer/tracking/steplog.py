"""What is recorded of each step: metrics, progress for the agent, trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import MicroBatch
from trainer.collectives.gloo import mean_of_ranks
from trainer.collectives.group import Group
from trainer.process.rank import Rank
from trainer.tracking.metrics import MetricsLog
from trainer.tracking.trackers import Tracker


class StepLog:
    """Collects one step's micro-batches and records the step. Independent of logging_steps."""

    def __init__(
        self,
        rank: Rank,
        group: Group,
        metrics: MetricsLog,
        trackers: Sequence[Tracker],
        attempt: int,
        clock: Clock | None = None,
    ) -> None:
        self.metrics = metrics
        self._rank = rank
        self._group = group
        self._trackers = trackers
        self._attempt = attempt
        self._clock = clock or SystemClock()
        self._samples: list[tuple[int, ...]] = []
        self._losses: list[torch.Tensor] = []
        self._ended = time.monotonic()

    def begin(self) -> None:
        """A window of A micro-batches begins."""
        self._samples, self._losses = [], []

    def micro_batch(self, samples: Sequence[int], loss: torch.Tensor) -> None:
        """One micro-batch went forward and backward.

        samples: the numbers of its B samples
        loss: a scalar tensor, as `training_step` returns it
        """
        self._samples.append(tuple(samples))
        self._losses.append(loss)
        self._rank.beat("training")

    def computed(self) -> list[MicroBatch]:
        """The micro-batches of this window so far. Waits for the device."""
        return [
            MicroBatch(samples=samples, loss=float(loss).hex())
            for samples, loss in zip(self._samples, self._losses, strict=True)
        ]

    def end(self, step: int, total: int, learning_rate: float | None, grad_norm: object) -> None:
        """The step is done. Collective: the loss is the mean over the ranks."""
        summed = torch.zeros_like(self._losses[0])
        for loss in self._losses:
            summed += loss
        mean = mean_of_ranks(self._group, summed)
        norm = _number(grad_norm)
        now = time.monotonic()
        seconds, self._ended = now - self._ended, now
        self.metrics.add(
            StepMetrics(
                step=step,
                attempt=self._attempt,
                loss=mean if math.isfinite(mean) else None,
                loss_hex=mean.hex(),
                learning_rate=learning_rate or 0.0,
                grad_norm=norm,
                time=iso(self._clock.now()),
                samples=tuple(chain.from_iterable(self._samples)),
                micro_losses=tuple(float(loss).hex() for loss in self._losses),
            )
        )
        self._rank.beat("step")
        if self._rank.number == 0:
            self._rank.progress(
                step, total, mean, learning_rate=learning_rate or 0.0, step_seconds=seconds
            )
        self._track(
            step,
            {"train/loss": mean, "train/learning_rate": learning_rate, "train/grad_norm": norm},
        )

    def evaluated(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """An evaluation is done."""
        if self._rank.number == 0:
            shown = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            self._rank.event("evaluated", step=step, metrics=shown, seconds=round(seconds, 3))
        self._track(step, {f"eval/{k.removeprefix('eval_')}": v for k, v in metrics.items()})
        self._ended = time.monotonic()

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close(interrupted=self._rank.board.raised)
        self.metrics.close()

    def _track(self, step: int, values: Mapping[str, float | None]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, values)


def _number(value: object) -> float | None:
    """A finite float, or None: NaN is no JSON."""
    if value is None:
        return None
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None
