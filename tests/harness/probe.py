"""`python -m tests.harness.probe`: the real trainer, with signals raised at exact places.

QVL_PROBE is a JSON list of {"at", "step", "rank", "signal"} and, for `micro`, "micro"; `step`
counts the steps that are done. `at` is
  fetch     before the window of the next step is fetched
  micro     before that micro-batch of the next step is computed
  boundary  after the step, before its vote
  save      while its checkpoint is written
  eval      in an evaluation, at its first batch
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from trainer.rank import Rank, run
from trainer.work import TrainingWork


class Prober:
    """Raises the signals that were asked for; each once."""

    def __init__(self, rank: Rank, spots: list[dict[str, Any]]) -> None:
        self._rank = rank
        self._spots = spots

    def hit(self, at: str, step: int, micro: int | None = None) -> None:
        """Signal this process if this place was asked for, and wait until that is seen."""
        here = (at, step, micro, self._rank.number)
        for spot in list(self._spots):
            if (spot["at"], spot["step"], spot.get("micro"), spot["rank"]) == here:
                self._spots.remove(spot)
                os.kill(os.getpid(), getattr(signal, spot["signal"]))
                assert self._rank.board.wait(5.0)


class ProbedWork(TrainingWork):
    """Wraps a few methods of the trainer once it is imported."""

    def prepare(self, rank: Rank) -> None:
        super().prepare(rank)
        from trainer import loop, saving

        prober = Prober(rank, json.loads(os.environ.get("QVL_PROBE", "[]")))
        trainer = loop.OrchestratedTrainer

        def at(place: str) -> Callable[..., None]:
            return lambda t, *_, **__: prober.hit(place, t.state.global_step)

        before(trainer, "get_batch_samples", at("fetch"))
        before(trainer, "_maybe_log_save_evaluate", at("boundary"))
        before(trainer, "prediction_step", at("eval"))
        before(
            trainer,
            "training_step",
            lambda t, *_: prober.hit("micro", t.state.global_step, t._micro),
        )
        before(saving.Saver, "_write_own", lambda s, *_: at("save")(s._trainer))


def before(cls: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the same arguments before each call of a method."""
    inner = getattr(cls, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        act(self, *args)
        return inner(self, *args, **kwargs)

    setattr(cls, name, wrapped)


if __name__ == "__main__":
    run(ProbedWork())
