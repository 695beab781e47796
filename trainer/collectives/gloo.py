"""The ranks' side channel: collectives over gloo, beside whatever carries the gradients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from orchestrator.contract.jsonio import Json
from trainer.collectives.group import Group, Solo


class GlooGroup(Group):
    """A gloo group of all ranks. A peer that has left raises RuntimeError at the next call."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size())
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, value: Json) -> list[Json]:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.gather_tensors(torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(self.gather_tensors(padded), sizes, strict=True)
        ]

    def gather_tensors(self, value: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's CPU tensor, W of them by rank; shapes and types must agree."""
        parts = [torch.zeros_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value, group=self._group)
        return parts

    def maximum(self, values: Sequence[int]) -> list[int]:
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return [int(v) for v in tensor]

    def barrier(self, seconds: float) -> None:
        dist.monitored_barrier(self._group, timeout=timedelta(seconds=seconds))

    def close(self) -> None:
        dist.destroy_process_group()


def make_group(timeout_s: float) -> Group:
    """The group of the initialised process group; of one rank if there is none."""
    if not dist.is_initialized():
        return Solo()
    return GlooGroup(timeout_s)


def mean_of_ranks(group: Group, value: torch.Tensor) -> float:
    """Mean over all ranks of a tensor of one element, in the arithmetic by which transformers
    logs losses.
    """
    own = value.detach().cpu().reshape(1)
    if not isinstance(group, GlooGroup):
        return float(own)
    return float(torch.cat(group.gather_tensors(own)).mean())
