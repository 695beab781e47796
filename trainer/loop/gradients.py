"""Every trainable parameter gets a gradient: watched in the first backward pass, and seen to."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.errors import UserError

_SHOWN = 5
_VISION = ".visual."
"""In the names of parameters that only pictures reach."""


class Reached:
    """Gives adapters of the vision tower a gradient of zero where a micro-batch has no picture.

    Without any, this rank would have less to reduce than a rank with pictures: DeepSpeed's
    buckets would differ in size, and the ranks' collectives would not meet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._vision = [p for n, p in model.named_parameters() if p.requires_grad and _VISION in n]

    def by(self, loss: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The same scalar loss, to the bit, whose gradient reaches all of them.

        inputs: of one micro-batch; only whether it has pixel_values [P, D] counts
        """
        if inputs.get("pixel_values") is not None:
            return loss
        for parameter in self._vision:
            loss = loss + (parameter * 0).sum().to(loss)
        return loss


class GradientWatch:
    """Ends the run if a trainable parameter gets no gradient: it would never be trained.

    Parameters of the vision tower are judged after the first batch with pictures. Raises
    UserError out of that backward pass; then, or when all is well, it takes itself off.
    """

    def __init__(self, model: nn.Module) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._missing = set(trainable)
        self._pictures = False
        self._queued = False
        self._handles: list[Any] = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for name, parameter in trainable.items():
            self._handles.append(parameter.register_hook(self._seen(name)))

    def _enter(self, _module: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        self._pictures = kwargs.get("pixel_values") is not None

    def _seen(self, name: str) -> Any:
        def hook(_gradient: torch.Tensor) -> None:
            if self._pictures or _VISION not in name:  # else it is the zero of `Reached`
                self._missing.discard(name)
            if not self._queued:
                self._queued = True
                # Called by autograd at the end of this backward pass.
                torch.autograd.Variable._execution_engine.queue_callback(self._judge)

        return hook

    def _judge(self) -> None:
        self._queued = False
        dead = sorted(n for n in self._missing if self._pictures or _VISION not in n)
        if dead or self._pictures or not self._missing:
            for handle in self._handles:
                handle.remove()
        if dead:
            named = ", ".join(dead[:_SHOWN]) + (", ..." if len(dead) > _SHOWN else "")
            raise UserError(
                f"{len(dead)} trainable parameters got no gradient from the first backward pass, "
                f"so they would not be trained: {named}",
                hint="lora.target_modules must name modules that the data reaches",
            )
