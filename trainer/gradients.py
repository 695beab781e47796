"""Watches that every trainable parameter is reached by the first backward pass."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator.errors import UserError

_SHOWN = 5


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
            self._missing.discard(name)
            if not self._queued:
                self._queued = True
                # Called by autograd at the end of this backward pass.
                torch.autograd.Variable._execution_engine.queue_callback(self._judge)

        return hook

    def _judge(self) -> None:
        self._queued = False
        dead = sorted(n for n in self._missing if self._pictures or ".visual." not in n)
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
