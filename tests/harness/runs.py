"""Whole runs on the local backend with the torch-free trainer, driven pass by pass."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.agent.identity import pid_of, start_ticks
from orchestrator.backends.base import JobRef, Submission
from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import from_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import LogRecord
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import TrainSpec
from orchestrator.controller.reconcile import Step, reconcile
from orchestrator.controller.run import Run
from orchestrator.controller.status_rows import job_of
from orchestrator.errors import RecordDamaged
from orchestrator.operations.submit import SiteSettings, Submitter, submit
from orchestrator.registry.store import Registry
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import read_segments
from tests.harness.waiting import PATIENCE_S, until

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Bench:
    """A state folder, a data folder and a job file's worth of settings."""

    folder: Path
    module: str = "trainer.testing.fake"
    uri: str | None = None
    """Root of the run directories; None = a folder below `folder`."""
    registry: Registry = field(init=False)
    runs: list[Driven] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = Registry(self.folder / "state")
        (self.folder / "model").mkdir(parents=True)
        (self.folder / "model" / "config.json").write_text("{}")
        samples = [{"conversations": [{"from": "user", "value": f"{i}"}]} for i in range(50)]
        (self.folder / "train.json").write_text(json.dumps(samples))

    def job(self, **changes: Any) -> ResolvedJob:
        """A job of 20 steps on two ranks; `changes` replaces fields."""
        ranks = changes.pop("ranks", 2)
        job = ResolvedJob(
            name="fake",
            backend="local",
            model=ModelSpec(path=str(self.folder / "model")),
            quantization={"load_in_4bit": True},
            lora={"r": 8},
            data=DataSpec(train=str(self.folder / "train.json")),
            training={"max_steps": 20, "seed": 7, "learning_rate": 1e-3},
            deepspeed={"zero_optimization": {"stage": 2}},
            zero_stage=2,
            resources=Resources(nodes=1, gpus_per_node=ranks),
            checkpoint=CheckpointSpec(uri=self.uri or str(self.folder / "runs"), every_steps=5),
            preemption=PreemptionSpec(grace_s=10.0),
            batch=BatchPlan(micro=2, accumulation=2, world_size=ranks),
        )
        return replace(job, **changes)

    def submit(self, job: ResolvedJob | None = None, *, parallel: int = 8, **knobs: Any) -> Driven:
        """Submit with the fake trainer; `knobs` become QVL_FAKE_* variables of the ranks."""
        job = job or self.job()
        variables = {f"QVL_FAKE_{k.upper()}": str(v) for k, v in knobs.items()}
        site = SiteSettings(
            max_parallel_runs=parallel, local_report_s=0.0, trainer_module=self.module
        )
        run = submit(
            replace(job, env={**job.env, **variables}),
            "name: fake\n",
            Submitter(self.registry, site, SystemClock(), os.environ),
        )
        self.runs.append(Driven(run))
        return self.runs[-1]

    def close(self) -> None:
        """Kill and reap what is left."""
        for file in (self.folder / "state" / "agents").glob("*.json"):
            pid = pid_of(file.stem)
            if pid is not None:
                kill([*descendants(pid), pid])
        for driven in self.runs:
            driven.wait_gone()


class Hasty(SystemClock):
    """A wall clock on which every back-off is over by the next look."""

    def now(self) -> float:
        return super().now() + 86_400.0


@dataclass
class Driven:
    """A run whose controller is the test itself."""

    run: Run
    step: Step | None = None

    def hurry(self) -> None:
        """Wait for no back-off from now on."""
        self.run = replace(self.run, clock=Hasty())

    def look(self) -> Step:
        """One pass of the controller."""
        self.step = reconcile(self.run)
        return self.step

    def drive(
        self, until: Callable[[Step], bool] | None = None, *, seconds: float = PATIENCE_S
    ) -> Step:
        """Pass after pass until `until` holds (default: settled)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            step = self.look()
            if (until or (lambda s: s.settled))(step):
                if step.settled:
                    self.wait_gone()
                return step
            time.sleep(0.05)
        raise AssertionError(f"not reached; last row: {self.step and self.step.row}\n{self.logs()}")

    def wait_gone(self) -> None:
        """Until the newest job has ended (its helper may still tidy up)."""
        job = self.job()
        end = time.monotonic() + PATIENCE_S
        while job and time.monotonic() < end:
            seen = self.run.backend.observe([job])[job]
            if seen.phase == "gone" or seen.forgotten:
                return
            time.sleep(0.02)

    def job(self) -> JobRef | None:
        """The newest submission's job, as it was handed over."""
        number = attempts.newest_number(attempts.all_submissions(self.storage))
        with suppress(RecordDamaged):
            note = attempts.read_submission_id(self.storage, number)
            return (
                JobRef(note.backend_id, f"{self.run.run_id}-{number}", note.uid) if note else None
            )
        return None

    def cancel_job(self) -> None:
        """Its backend's cancel, and no tombstone."""
        job = self.job()
        assert job is not None
        self.run.backend.cancel(job)

    def until_step(self, number: int, *, attempt: int | None = None) -> Step:
        """Drive until the run has finished this optimizer step (in that attempt)."""
        return self.drive(
            lambda s: (
                s.state.value == "RUNNING"
                and s.row["step"] >= number
                and (attempt is None or s.row["attempt"] == attempt)
            )
        )

    def until_attempt(self, number: int) -> Step:
        """Drive until this attempt has been claimed."""
        return self.drive(lambda s: s.row["attempt"] >= number or s.settled)

    @property
    def storage(self) -> Any:
        return self.run.storage

    @property
    def directory(self) -> Path:
        return Path(self.run.storage.uri)

    def records(self) -> tuple[LogRecord, ...]:
        return RunLog(self.storage).read().records

    def commits(self) -> list[tuple[int, int, str]]:
        """(attempt, step, trigger) of every commit, oldest first."""
        return [
            (r.attempt, r.commit().step, r.commit().trigger)
            for r in self.records()
            if r.kind == "commit"
        ]

    def curve(self, rank: int = 0) -> dict[int, StepMetrics]:
        """One rank's metrics by step; a later attempt wins."""
        found: dict[int, StepMetrics] = {}
        for number in attempts.attempt_numbers(self.storage):
            for _, line in read_segments(self.storage, layout.metrics(number, rank)):
                metrics = from_json(StepMetrics, line)
                found[metrics.step] = metrics
        return found

    def outcome(self) -> tuple[Any, ...]:
        """Everything that must not depend on preemptions: losses, rates, samples, adapter."""
        done = RunLog(self.storage).read().done()
        assert done is not None, "the run is not done"
        curves = [self.curve(rank) for rank in range(self.run.entry.gpus)]
        steps = [
            (s, m.loss_hex, m.learning_rate, m.samples, m.micro_losses)
            for curve in curves
            for s, m in sorted(curve.items())
        ]
        return steps, done.done().adapter_sha256

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events of all attempts' nodes, in order."""
        found = []
        for number in attempts.attempt_numbers(self.storage):
            folder = layout.attempt_events(number, "node-0")
            found += [line for _, line in read_segments(self.storage, folder)]
        return [e for e in found if kind is None or e["kind"] == kind]

    def logs(self) -> str:
        """What agents printed."""
        files = sorted(self.run.registry.state_dir.glob("jobs/*/agent.log"))
        return "\n".join(f.read_text()[-2000:] for f in files)

    def notify(self, name: str = "SIGTERM", rank: int | None = None) -> None:
        assert self.step is not None
        job = job_of(self.step.row)
        assert job is not None, "the run has no job"
        self.run.backend.notify(job, name, rank)

    def agent_pid(self) -> int:
        assert self.step is not None
        pid = pid_of(self.step.row["backend_job_id"])
        assert pid is not None, "the agent does not live"
        return pid

    def tree(self) -> list[int]:
        """The agent and everything below it."""
        return [self.agent_pid(), *descendants(self.agent_pid())]


def prepared(run: Run, spec: TrainSpec) -> Submission:
    """A submission of a run, as its backend hands it over."""
    return run.backend.prepare(run.job(spec.resolved), spec)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in (int(c) for c in task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Signal processes, whichever still live."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_gone(pids: list[int], seconds: float = 10.0) -> None:
    """Until none of them lives; AssertionError otherwise."""

    def left() -> list[int]:
        return [p for p in pids if start_ticks(p)]

    until(lambda: not left(), seconds, why=lambda: f"still alive: {left()}")


@contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    """SIGSTOP on entry, SIGCONT on exit."""
    kill(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        kill(pids, signal.SIGCONT)


def saved_all(run: Driven, attempt: int = 1) -> bool:
    """True if the last commit of the attempt holds every step that it computed."""
    lines = read_segments(run.storage, layout.metrics(attempt, 0))
    reached = max(int(line["step"]) for _, line in lines)
    return reached == max((step for a, step, _ in run.commits() if a == attempt), default=0)


def node_events(run: Driven, node: int, kind: str) -> list[dict[str, Any]]:
    """Events of one node of every attempt."""
    found = []
    for claim in attempts.read_claims(run.storage):
        folder = layout.attempt_events(claim.attempt, f"node-{node}")
        found += [line for _, line in read_segments(run.storage, folder)]
    return [e for e in found if e["kind"] == kind]
