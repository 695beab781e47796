"""Evaluation: every sample counts once, every rank takes part in the same number of votes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.collectives.group import Group


class Interrupted(Exception):
    """All ranks agreed to stop in the middle of an evaluation."""


def run(trainer: Any, loader: Any, group: Group, stop: Callable[[], bool]) -> dict[str, float]:
    """Mean loss over the evaluation data, each sample weighted alike.

    loader: of an EvaluationSampler, on whose `counts` it relies
    stop: the vote, cast before each batch. Raises Interrupted.
    """
    trainer.model.eval()
    counts = loader.batch_sampler.counts
    summed = 0.0
    for inputs, count in zip(loader, counts, strict=True):
        if stop():
            raise Interrupted
        inputs.pop("sample_index")
        with torch.no_grad():
            loss, _, _ = trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)
        summed += float(loss) * count
    replies = group.gather([summed.hex(), sum(counts)])
    samples = sum(count for _, count in replies)
    return {
        "eval_loss": sum(float.fromhex(part) for part, _ in replies) / samples,
        "eval_samples": samples,
    }
