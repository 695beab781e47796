"""Compares what this attempt computes first with what an earlier one computed of it.

No tensors here: the fake trainer uses it too.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.contract.interrupted import Interrupted, MicroBatch, apart, difference
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.spec import Assignment
from orchestrator.errors import ContractRefused
from trainer.process.rank import Rank


class Continuity:
    """One rank's; no collectives, and nothing is computed for it.

    tolerance: relative difference of a loss that is let pass; 0 = bit for bit
    """

    def __init__(self, rank: Rank, assignment: Assignment, tolerance: float) -> None:
        self._rank = rank
        self._attempt = assignment.attempt
        self._conditions = assignment.conditions
        self._tolerance = tolerance
        self._start = assignment.start.step
        mine = [r for r in assignment.expected if r.rank == rank.number]
        self._expected = mine[0].micro_batches if mine else ()
        self._of = mine[0].attempt if mine else 0
        self._worst = 0.0

    def waits(self, step: int, index: int) -> bool:
        """Whether `check` is of use: asking a GPU for the loss makes training wait for it."""
        return step == self._start and index < len(self._expected)

    def check(self, step: int, index: int, samples: Sequence[int], loss: float) -> None:
        """Take one micro-batch; raises ContractRefused where it is not what it was.

        step: the last step that is done
        index: of the micro-batch in the step, from 0
        """
        if not self.waits(step, index):
            return
        expected = self._expected[index]
        fault = difference(expected, samples, loss.hex(), self._tolerance)
        if fault is not None:
            raise ContractRefused(
                f"the run does not go on where attempt {self._of} left it: of micro-batch "
                f"{index + 1} of step {step + 1} on rank {self._rank.number}, the {fault}",
                hint="go on from an older checkpoint (`resume` with --from), or leave this "
                "comparison out with --allow-change losses",
            )
        self._worst = max(self._worst, apart(expected.loss, loss.hex()))
        if index + 1 == len(self._expected):
            self._rank.event(
                "reproduced",
                step=step,
                of_attempt=self._of,
                micro_batches=len(self._expected),
                apart=self._worst,
                tolerance=self._tolerance,
            )

    def interrupted(self, step: int, computed: Sequence[MicroBatch]) -> None:
        """Tell what a stop gives up; `step` is the last one that is done."""
        if computed:
            record = Interrupted(
                attempt=self._attempt,
                rank=self._rank.number,
                step=step,
                micro_batches=tuple(computed),
                conditions=self._conditions,
            )
            self._rank.event("interrupted", **to_json(record))
