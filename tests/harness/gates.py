"""Places of the fake trainer at which its ranks stand until the test lets them go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.contract.resolved import ResolvedJob
from tests.harness.runs import Bench, Driven


@dataclass
class Gate:
    """`ranks` stop at this place (see tests.harness.probe) of the first attempt.

    do: `hold` until `open`, or `pause` until a notice has come to each of them
    """

    folder: Path
    at: str
    step: int
    ranks: tuple[int, ...] = (0, 1)
    do: str = "hold"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def _name(self) -> Path:
        return self.folder / f"gate-{self.at}-{self.step}"

    def _mark(self, rank: int) -> Path:
        return self._name.with_suffix(f".{rank}")

    def spots(self) -> list[dict[str, Any]]:
        place: dict[str, Any] = {"at": self.at, "step": self.step, "attempt": 1, "do": self.do}
        if self.at == "micro":
            place["micro"] = 0
        return [
            {**place, **self.more, "rank": r, "mark": str(self._mark(r)), "until": str(self._name)}
            for r in self.ranks
        ]

    def reached(self, run: Driven) -> None:
        """Drive the run until all of `ranks` stand there."""
        run.drive(lambda _: all(self._mark(rank).exists() for rank in self.ranks))

    def open(self) -> None:
        self._name.touch()


def submit(bench: Bench, *gates: Gate, job: ResolvedJob | None = None, **knobs: Any) -> Driven:
    """As Bench.submit, with these gates on the way."""
    bench.module = "tests.harness.fakeprobe"
    job = job or bench.job()
    spots = [spot for gate in gates for spot in gate.spots()]
    return bench.submit(replace(job, env={**job.env, "QVL_PROBE": json.dumps(spots)}), **knobs)
