"""`python -m tests.harness.fakeprobe`: the fake trainer, with signals at exact places.

Same QVL_PROBE as tests.harness.probe.
"""

from __future__ import annotations

import json
import os
from typing import Any

from orchestrator.contract.spec import Assignment
from tests.harness.probe import Prober, before
from trainer.process.outcome import Ending
from trainer.process.rank import Rank, run
from trainer.testing import fake


class ProbedFake(fake.FakeWork):
    """Wraps the places of the fake where a probe may strike."""

    def train(self, rank: Rank, assignment: Assignment) -> Ending:
        prober = Prober(rank, json.loads(os.environ.get("QVL_PROBE", "[]")))
        training = fake._FakeTraining
        micro = {"step": -1, "next": 0}

        def at_micro(_self: Any, step: int) -> None:
            if micro["step"] != step:
                micro.update(step=step, next=0)
            prober.hit("micro", step - 1, micro["next"])
            micro["next"] += 1

        before(training, "_one_step", lambda t: prober.hit("fetch", t._step))
        before(training, "_misfortune", at_micro)
        before(training, "_boundary", lambda t: prober.hit("boundary", t._step))
        before(training, "capture", lambda t, *_: prober.hit("save", t._step))
        before(training, "_evaluate_batch", lambda t: prober.hit("eval", t._step))
        return super().train(rank, assignment)


if __name__ == "__main__":
    run(ProbedFake())
