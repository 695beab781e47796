"""A run directory in memory and the agents that come to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.agent.identity import Identity
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ArrivalRecord, SubmissionRecord, VerdictRecord
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import StartFrom, TrainSpec
from orchestrator.helper.claim import Claimed, Claimer
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.memory import MemoryStorage
from tests.harness.clock import FakeClock

PLAN = BatchPlan(micro=4, accumulation=3, world_size=2)
JOB = ResolvedJob(
    name="n",
    backend="local",
    model=ModelSpec(path="/m"),
    quantization={},
    lora={},
    data=DataSpec(train="/t"),
    training={},
    deepspeed={},
    zero_stage=2,
    resources=Resources(nodes=1, gpus_per_node=2),
    checkpoint=CheckpointSpec(uri="/runs"),
    preemption=PreemptionSpec(grace_s=60.0),
    batch=PLAN,
)
SPEC = TrainSpec(
    run_id="r",
    storage="memory://r",
    submission=1,
    backend="local",
    nodes=1,
    gpus_per_node=2,
    grace_s=60.0,
    python="python",
    node_lost_s=5.0,
)


class Company(FakeClock):
    """A clock of an agent whose peers say that they are there whenever it waits."""

    def __init__(self, site: Site, clock: FakeClock, mine: ArrivalRecord, nodes: int) -> None:
        self._site, self._clock, self._mine, self._nodes = site, clock, mine, nodes

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)
        me = self._mine
        for k in range(self._nodes):
            if me.slot is None or k != me.slot:
                self._site.arrive(
                    replace(me, token=f"peer{k}", slot=None if me.slot is None else k)
                )


class Site:
    """One run directory and the agents that come to it, by default node 0 of job `a`."""

    def __init__(self, storage: MemoryStorage, clock: FakeClock) -> None:
        self.storage = storage
        self.clock = clock
        self.log = RunLog(storage)
        self.beats = 0

    def submit(self, number: int, **more: Any) -> None:
        record = SubmissionRecord(
            number=number, key=f"k{number}", token="t", spec=SPEC, start=StartFrom(), **more
        )
        assert attempts.create_submission(self.storage, record) is None

    def arrive(self, who: ArrivalRecord, submission: int = 1, restart: int = 0) -> None:
        """Another agent says that it is there, once more."""
        self.beats += 1
        attempts.put_arrival(self.storage, submission, restart, replace(who, beat=self.beats))

    def claimer(
        self,
        submission: int = 1,
        job: str = "a",
        restart: int = 0,
        slot: int | None = 0,
        nodes: int = 1,
        token: str = "",
        alone: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Claimer:
        """An agent, with its peers unless it is `alone`."""
        spec = replace(SPEC, submission=submission, nodes=nodes)
        token = token or f"{job}-{restart}-{slot}"
        mine = ArrivalRecord(token=token, backend_id=job, slot=slot, host="host")
        clock = self.clock if alone or nodes == 1 else Company(self, self.clock, mine, nodes)
        return Claimer(
            self.storage,
            RunLog(self.storage),
            clock,
            spec,
            Identity(job, restart, slot, "host"),
            token,
            interrupted,
        )

    def start(self, *args: Any, **named: Any) -> Claimed:
        return self.claimer(*args, **named).claim(JOB)

    def end(self, attempt: int, code: int, reason: str = "r") -> None:
        attempts.write_verdict(
            self.storage, VerdictRecord(attempt=attempt, slot=0, code=code, reason=reason)
        )
