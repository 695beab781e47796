"""`python -m tests.harness.probe`: the real trainer, disturbed at exact places.

QVL_PROBE is a JSON list of spots {"at", "step", "rank"} and, where they matter, "attempt"
(every one if absent), "micro", "do", "signal", "to"; `step` counts the steps that are done.
`at` is
  load      assigned, nothing loaded yet
  fetch     before the window of the next step is fetched
  micro     before that micro-batch of the next step is computed
  boundary  after the step, before its vote
  save      while its checkpoint is written
  eval      in an evaluation, at its first batch
`do` is
  signal    (default) send `signal` to `to`: this rank (default), its `agent`, or the whole
            process `group` of the agent; then wait until the notice has arrived here
  pause     wait for a notice from outside
  hold      wait until the file `until` exists
  sleep     do nothing for `seconds`
  hang      for ever, in the way `how` of tests.harness.hanging
  memory    use up the address space and ask torch for more
`mark`, if given, is a file that is made when the rank has come there.
QVL_PROBE_OUT is a folder for what tests.harness.restored records there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.contract import env
from orchestrator.contract.spec import Assignment
from tests.harness import hanging
from tests.harness.waiting import until
from trainer.loop.work import TrainingWork
from trainer.process.outcome import Ending
from trainer.process.rank import Rank, run

PATIENCE_S = 120.0
Spot = dict[str, Any]


class Prober:
    """Does what was asked for; each once."""

    def __init__(self, rank: Rank, spots: list[Spot]) -> None:
        self._rank = rank
        self._spots = spots

    @classmethod
    def from_environment(cls, rank: Rank) -> Prober:
        return cls(rank, json.loads(os.environ.get("QVL_PROBE", "[]")))

    def hit(self, at: str, step: int, micro: int | None = None) -> None:
        """Act if this place was asked for."""
        attempt = int(os.environ.get(env.ATTEMPT, "0"))
        here = (at, step, micro, self._rank.number)
        for spot in list(self._spots):
            place = (spot["at"], spot["step"], spot.get("micro"), spot["rank"])
            if place == here and spot.get("attempt", attempt) == attempt:
                self._spots.remove(spot)
                self._act(spot)

    def _act(self, spot: Spot) -> None:
        do = spot.get("do", "signal")
        if "mark" in spot:
            Path(spot["mark"]).touch()
        if do == "memory":
            exhaust_memory()
        if do == "hang":
            hanging.WAYS[spot["how"]]()
        if do == "sleep":
            time.sleep(spot["seconds"])
            return
        if do == "hold":
            until(Path(spot["until"]).exists, PATIENCE_S)
            return
        if do == "signal":
            send(getattr(signal, spot["signal"]), spot.get("to", "rank"))
        assert self._rank.board.wait(PATIENCE_S), f"no notice came at {spot}"


def send(number: int, target: str) -> None:
    """Signal this rank, its agent, or everything of the attempt on this node."""
    if target == "rank":
        os.kill(os.getpid(), number)
    elif target == "agent":
        os.kill(os.getppid(), number)
    else:
        assert target == "group"
        # Not the test's own group: the agent leads one of its own.
        assert os.getpgrp() == os.getppid()
        os.killpg(os.getpgrp(), number)


def exhaust_memory() -> None:
    """Let torch's allocator meet a real limit of this process."""
    import torch

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    torch.empty(2 << 30, dtype=torch.uint8)
    raise AssertionError("the limit did not hold")


class ProbedWork(TrainingWork):
    """Wraps a few methods of the trainer once it is imported."""

    def prepare(self, rank: Rank) -> None:
        super().prepare(rank)
        from tests.harness import restored
        from trainer.checkpoint import state
        from trainer.loop import training as loop

        self._prober = prober = Prober.from_environment(rank)
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
        before(state.TrainingState, "_files", lambda s, *_: at("save")(s._trainer))
        if "QVL_PROBE_OUT" in os.environ:
            restored.watch(rank, Path(os.environ["QVL_PROBE_OUT"]))

    def train(self, rank: Rank, assignment: Assignment) -> Ending:
        self._prober.hit("load", 0)
        return super().train(rank, assignment)


def before(cls: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the same arguments before each call of a method."""
    inner = getattr(cls, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        act(self, *args)
        return inner(self, *args, **kwargs)

    setattr(cls, name, wrapped)


if __name__ == "__main__":
    run(ProbedWork())
