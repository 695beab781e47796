"""`python -m tests.integration.families.unused`: the real trainer with one more trainable
parameter, which no gradient reaches."""

from __future__ import annotations

from typing import Any

from trainer.loop.work import TrainingWork
from trainer.process.rank import Rank, run


class SpoiltWork(TrainingWork):
    """Adds the parameter once the model is loaded."""

    def prepare(self, rank: Rank) -> None:
        super().prepare(rank)
        import torch

        from trainer.loop import build

        load = build.load_model

        def spoilt(*args: Any, **kwargs: Any) -> Any:
            loaded = load(*args, **kwargs)
            layer = loaded.model.base_model.model.model.language_model.layers[0]
            layer.register_parameter("lora_unused", torch.nn.Parameter(torch.ones(8)))
            return loaded

        build.load_model = spoilt


if __name__ == "__main__":
    run(SpoiltWork())
