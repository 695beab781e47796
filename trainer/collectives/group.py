"""How the ranks of a run agree: a few small collectives, whatever carries them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from orchestrator.contract.jsonio import Json


class Group(ABC):
    """All ranks of the attempt. Every method is called by all of them, in the same order."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @abstractmethod
    def gather(self, value: Json) -> list[Json]:
        """Every rank's value, by rank, on every rank."""

    def maximum(self, values: Sequence[int]) -> list[int]:
        """Element by element the largest of all ranks."""
        return [max(column) for column in zip(*self.gather(list(values)), strict=True)]

    def share(self, value: Json) -> Json:
        """Rank 0's value on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    def barrier(self, seconds: float) -> None:  # noqa: ARG002 - not every carrier can
        """Wait for all ranks, at most `seconds` where that can be limited."""
        self.gather(None)

    def close(self) -> None:  # noqa: B027 - nothing to give up is the usual case
        """Give up the connections."""


class Solo(Group):
    """A run of one rank."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def gather(self, value: Json) -> list[Json]:
        return [value]
