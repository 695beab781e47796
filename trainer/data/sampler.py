"""Data order: a pure function of (seed, epoch, step), independent of how a step is cut.

An epoch is a permutation of the sample numbers. Step k takes the k-th run of
`global_batch` numbers of it, rank r takes the r-th contiguous block of the step, and
the block is cut into micro-batches in order. Micro-batch and accumulation therefore
never decide which samples a step or a rank sees.

The permutation sorts the sample numbers by 64-bit keys drawn from SplitMix64 (Steele,
Lea and Flood, OOPSLA 2014); equal keys keep the order of their numbers. It is defined
by integer arithmetic alone, so no library version can change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orchestrator.contract.plan import BatchPlan
from orchestrator.errors import UserError

_Words: TypeAlias = npt.NDArray[np.uint64]

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches of one epoch; the incomplete last one is dropped.

    Raises UserError when not even one batch can be filled.
    """
    if global_batch < 1:
        raise UserError(f"the global batch must be at least 1, not {global_batch}")
    if samples < global_batch:
        raise UserError(
            f"the data set has {samples} samples, but one optimizer step takes {global_batch} "
            "(micro-batch x accumulation x number of GPUs)",
            hint="lower training.per_device_train_batch_size or "
            "training.gradient_accumulation_steps, use fewer GPUs, or add samples",
        )
    return samples // global_batch


def dropped_per_epoch(samples: int, global_batch: int) -> int:
    """Samples of each epoch that fill no global batch; which ones differs by epoch."""
    return samples - steps_per_epoch(samples, global_batch) * global_batch


def step_indices(
    seed: int, epoch: int, step_in_epoch: int, samples: int, global_batch: int
) -> tuple[int, ...]:
    """The W x A x B sample numbers of one optimizer step over all ranks, in order.

    `step_in_epoch` counts from 0. Raises UserError when the data set is smaller than a
    global batch and IndexError when the epoch has no such step.
    """
    steps = steps_per_epoch(samples, global_batch)
    if not 0 <= step_in_epoch < steps:
        raise IndexError(f"step {step_in_epoch} of an epoch of {steps} steps")
    first = step_in_epoch * global_batch
    return tuple(_permutation(seed, epoch, samples)[first : first + global_batch].tolist())


def rank_block(indices: Sequence[int], rank: int, world_size: int) -> tuple[int, ...]:
    """The contiguous A x B samples of a step that belong to `rank`.

    Raises ValueError when the step does not divide by `world_size` or the rank is outside.
    """
    size, rest = divmod(len(indices), world_size)
    if rest or not 0 <= rank < world_size:
        raise ValueError(f"{len(indices)} samples, rank {rank} of {world_size}: no equal blocks")
    return tuple(indices[rank * size : (rank + 1) * size])


def micro_batches(block: Sequence[int], micro: int) -> list[tuple[int, ...]]:
    """`block` of A x B samples cut into A micro-batches of `micro` = B samples, in order.

    Raises ValueError when it does not divide.
    """
    if micro < 1 or len(block) % micro:
        raise ValueError(f"{len(block)} samples do not divide into micro-batches of {micro}")
    return [tuple(block[i : i + micro]) for i in range(0, len(block), micro)]


class RankBatchSampler:
    """Micro-batches of one rank over one epoch, as a `batch_sampler` of a DataLoader.

    samples: size of the data set
    plan: how a step is cut
    rank: global rank, from 0
    seed: of the run; with the epoch it fixes the order

    Raises UserError when the data set is smaller than a global batch.
    """

    def __init__(self, samples: int, plan: BatchPlan, rank: int, seed: int) -> None:
        self.samples = samples
        self.plan = plan
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.steps = steps_per_epoch(samples, plan.global_batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of one epoch on this rank."""
        return self.steps * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample numbers of each micro-batch of the current epoch."""
        epoch, plan = self.epoch, self.plan
        for step in range(self.steps):
            indices = step_indices(self.seed, epoch, step, self.samples, plan.global_batch)
            block = rank_block(indices, self.rank, plan.world_size)
            for batch in micro_batches(block, plan.micro):
                yield list(batch)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """Order of `samples` numbers in one epoch; the two latest are kept."""
    start = _mix_one(_mix_one((seed + _GAMMA) & _MASK) + epoch * _GAMMA)
    order = np.argsort(_splitmix64(start, samples), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def _splitmix64(seed: int, count: int) -> _Words:
    """The first `count` outputs of SplitMix64 started at `seed`."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(np.uint64(seed & _MASK) + steps * np.uint64(_GAMMA))


def _mix(z: _Words) -> _Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix_one(value: int) -> int:
    return int(_mix(np.array([value & _MASK], dtype=np.uint64))[0])
