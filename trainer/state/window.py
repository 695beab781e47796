"""What an accumulation window changes before its step is done, and how to take it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.contract.jsonio import Json
from trainer.state import rng


@dataclass(frozen=True, slots=True)
class LossState:
    """The Trainer's loss accounting since it last logged; its own checkpoints forget it."""

    running: float
    total: float
    last_logged: int

    @classmethod
    def of(cls, trainer: Any) -> LossState:
        return cls(
            trainer._tr_loss.item(), trainer._total_loss_scalar, trainer._globalstep_last_logged
        )

    def apply(self, trainer: Any) -> None:
        trainer._tr_loss = torch.full_like(trainer._tr_loss, self.running)
        trainer._total_loss_scalar = self.total
        trainer._globalstep_last_logged = self.last_logged

    def to_json(self) -> Json:
        """Exact: floats as hex."""
        return {
            "running": self.running.hex(),
            "total": self.total.hex(),
            "last_logged": self.last_logged,
        }

    @classmethod
    def from_json(cls, value: Json) -> LossState:
        return cls(
            float.fromhex(value["running"]), float.fromhex(value["total"]), value["last_logged"]
        )


@dataclass(frozen=True, slots=True)
class WindowStart:
    """State at the first micro-batch of a window; gradients and optimizer need none."""

    rng: rng.RngState
    loss: LossState
    flos: float
    tokens: int

    @classmethod
    def capture(cls, trainer: Any, *, distributed: bool) -> WindowStart:
        return cls(
            rng.capture(distributed=distributed),
            LossState.of(trainer),
            trainer.current_flos,
            trainer.state.num_input_tokens_seen,
        )

    def rewind(self, trainer: Any) -> None:
        """Make the trainer what it was when the window began."""
        rng.restore(self.rng)
        self.loss.apply(trainer)
        trainer.current_flos = self.flos
        trainer.state.num_input_tokens_seen = self.tokens
