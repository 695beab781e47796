"""Host memory for the state that a periodic save stores while training goes on.

The training loop waits for nothing but these copies; see `trainer.checkpoint.state`.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import copy
from enum import Enum
from typing import Any

import torch

_UNCHANGING = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device, Enum)


class HostBuffers:
    """Buffers that are used again by every save: new memory would cost more than the copy.

    unchanging: further types whose values never change and need no copy
    """

    def __init__(self, unchanging: tuple[type, ...] = ()) -> None:
        self._unchanging: tuple[type, ...] = (*_UNCHANGING, *unchanging)
        self._buffers: list[torch.Tensor] = []

    def copy(self, values: list[Any]) -> list[Any]:
        """The same values, unchanged by later steps, until the next copy is made."""
        self._buffers, spare = [], self._buffers
        copies = _Copies(self._buffers, spare, self._unchanging)
        copied: list[Any] = copies.of(values)
        copies.settle()
        return copied


class _Copies:
    """Copies of one state. Tensors that share a storage share its copy, as torch.save expects."""

    def __init__(
        self, taken: list[torch.Tensor], spare: list[torch.Tensor], unchanging: tuple[type, ...]
    ) -> None:
        self._taken = taken
        self._spare = _by_size(spare)
        self._unchanging = unchanging
        self._storages: dict[tuple[torch.device, int], torch.Tensor] = {}
        """By the place of what was copied, which lives until the last copy is made."""
        self._dicts: dict[int, tuple[object, object]] = {}
        """Original and copy, by the original's identity."""

    def of(self, value: Any) -> Any:
        """A copy of nested dicts, lists and tuples of tensors and plain values.

        What comes from a GPU is under way until `settle`.
        """
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach())
        if isinstance(value, self._unchanging):
            return value
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, list | tuple):
            items = [self.of(item) for item in value]
            if isinstance(value, list):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return copy.deepcopy(value)

    def _dict(self, value: dict[Any, Any]) -> object:
        if id(value) not in self._dicts:
            same = copy.copy(value)
            for key, item in value.items():
                same[key] = self.of(item)
            self._dicts[id(value)] = value, same
        return self._dicts[id(value)][1]

    def settle(self) -> None:
        """Until all copies have arrived."""
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        source = tensor.untyped_storage()
        place = source.device, source.data_ptr()
        if place not in self._storages:
            self._storages[place] = self._copied(tensor, source.nbytes())
        target = self._storages[place].untyped_storage()
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(target, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _copied(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        spare = self._spare.get((size, tensor.is_cuda))
        buffer = (
            spare.pop()
            if spare
            else torch.empty(size, dtype=torch.uint8, pin_memory=tensor.is_cuda)
        )
        self._taken.append(buffer)
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        whole.set_(tensor.untyped_storage(), 0, (size,), (1,))
        return buffer.copy_(whole, non_blocking=True)


def _by_size(buffers: list[torch.Tensor]) -> dict[tuple[int, bool], list[torch.Tensor]]:
    """Buffers by bytes and whether a GPU may write to them directly."""
    found: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for buffer in buffers:
        pinned = torch.cuda.is_initialized() and buffer.is_pinned()
        found.setdefault((buffer.nbytes, pinned), []).append(buffer)
    return found
