"""A learning rate that the user was allowed to change holds after the resume."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from trainer.checkpoint.restore import _use_rates


def make(rate: float) -> SimpleNamespace:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    return SimpleNamespace(optimizer=optimizer, lr_scheduler=scheduler)


def steps(trainer: SimpleNamespace, count: int) -> None:
    for _ in range(count):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_the_new_rate_follows_the_same_curve() -> None:
    old, new = make(1e-3), make(5e-4)
    steps(old, 4)
    rates = list(new.lr_scheduler.base_lrs)
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    new.lr_scheduler.load_state_dict(old.lr_scheduler.state_dict())
    assert new.lr_scheduler.base_lrs == [1e-3], "what the checkpoint brings back"
    _use_rates(new, rates)
    assert new.optimizer.param_groups[0]["lr"] == 5e-4 * 0.6
    steps(new, 1)
    assert new.optimizer.param_groups[0]["lr"] == 5e-4 * 0.5
