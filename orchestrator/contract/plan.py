"""The batch plan: how one global batch is cut into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Samples of one optimizer step.

    Every rank takes `rank_batch` = `micro` x `accumulation` samples of a step, in
    `accumulation` micro-batches of `micro`; all ranks together take `global_batch`.
    """

    micro: int
    """Samples of one forward pass on one rank (`per_device_train_batch_size`)."""
    accumulation: int
    """Micro-batches of one optimizer step (`gradient_accumulation_steps`)."""
    world_size: int
    """Number of ranks."""

    @property
    def rank_batch(self) -> int:
        return self.micro * self.accumulation

    @property
    def global_batch(self) -> int:
        return self.rank_batch * self.world_size
