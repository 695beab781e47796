"""Whole runs of the real trainer on the local backend: one undisturbed, others disturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.agent.identity import pid_of
from orchestrator.clock import parse_iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import loads
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.resolved import CheckpointSpec, ResolvedJob
from orchestrator.controller.reconcile import Step
from orchestrator.registry.store import Registry
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import read_segments
from tests.harness import jobs
from tests.harness.runs import Bench, Driven, descendants, kill

STEPS, EVERY, EVAL_EVERY = 20, 4, 5
TRAINER_STATE = "trainer_state.json"
PATIENCE_S = 1000.0
"""For a run of several attempts on a machine with other work; below the time-out of a test."""
POLL_S = 0.2
"""Between two looks: each costs the ranks some time on a machine of two cores."""


@dataclass(frozen=True)
class Disturbance:
    """One attempt of a run: what happens to it, and what must come of it.

    to: the ranks to signal, or `agent`, or `group` (the agent and all it started)
    committed: newest committed step after the attempt; None = nothing is committed yet
    """

    at: str
    step: int
    signal: str
    to: Sequence[int] | str
    code: int
    committed: int | None
    micro: int | None = None
    also: tuple[dict[str, Any], ...] = ()
    """Further spots of the same attempt."""

    def spots(self, attempt: int) -> list[dict[str, Any]]:
        ranks, to = (self.to, "rank") if not isinstance(self.to, str) else ([0], self.to)
        spot = {"at": self.at, "step": self.step, "signal": self.signal, "to": to}
        if self.micro is not None:
            spot["micro"] = self.micro
        return [
            {**s, "attempt": attempt} for s in (*({**spot, "rank": r} for r in ranks), *self.also)
        ]

    def notified(self) -> set[int | None]:
        """Who reported the notice: ranks by number, the agent as None."""
        if isinstance(self.to, str):
            return {None} if self.to == "agent" else {None, 0, 1}
        return set(self.to)


@dataclass
class TrainingBench(Bench):
    """Runs of the real trainer on the pictures and the model in `data`."""

    module: str = "tests.harness.probe"
    data: Path = field(kw_only=True)

    def __post_init__(self) -> None:
        self.registry = Registry(self.folder / "state")

    @property
    def probe(self) -> Path:
        """Where probes of these runs leave what they saw."""
        return self.folder / "probe"

    def job(self, **changes: Any) -> ResolvedJob:
        """Twenty steps on two ranks; evaluated, saved and logged at intervals that cross."""
        training = changes.pop("training", {})
        job = jobs.job(
            self.data,
            every_steps=EVERY,
            evaluate=True,
            max_steps=STEPS,
            eval_strategy="steps",
            eval_steps=EVAL_EVERY,
            per_device_eval_batch_size=2,
            logging_steps=3,
            **training,
        )
        checkpoint = CheckpointSpec(uri=str(self.folder / "runs"), every_steps=EVERY)
        patient = replace(job.preemption, grace_s=120.0)
        return replace(job, **{"checkpoint": checkpoint, "preemption": patient, **changes})

    def lasting_job(self, **changes: Any) -> ResolvedJob:
        """The same, not given up after any number of kills."""
        job = self.job(**changes)
        lasting = replace(job.preemption, max_failures_without_progress=99)
        return replace(job, preemption=lasting)

    def probed(self, job: ResolvedJob, spots: Sequence[dict[str, Any]], **more: str) -> TrainingRun:
        """Submit with these spots in the environment of all attempts."""
        self.probe.mkdir(exist_ok=True)
        env = {"QVL_PROBE": json.dumps(list(spots)), "QVL_PROBE_OUT": str(self.probe), **more}
        return TrainingRun(self.submit(replace(job, env=env)).run)

    def disturbed(
        self, job: ResolvedJob, course: Sequence[Disturbance], **more: str
    ) -> TrainingRun:
        """A run whose n-th attempt suffers course[n-1]; the one after them is left alone."""
        spots = [s for n, d in enumerate(course, 1) for s in d.spots(n)]
        return self.probed(job, spots, **more)


@dataclass
class TrainingRun(Driven):
    """A run of real training."""

    def follow(
        self, until: Callable[[Step], bool] | None = None, *, seconds: float = PATIENCE_S
    ) -> Step:
        """Look until `until` holds (default: settled), without crowding out the ranks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            step = self.look()
            if (until or (lambda s: s.settled))(step):
                return step
            assert not step.settled, f"settled before it was reached: {step.row}\n{self.logs()}"
            time.sleep(POLL_S)
        raise AssertionError(f"not reached; last row: {self.step and self.step.row}\n{self.logs()}")

    def finish(self) -> Step:
        """Follow to the end, and until its last process has gone."""
        step = self.follow()
        self.wait_gone()
        return step

    def verdicts(self) -> list[int]:
        """Exit code of each attempt; -1 for one that was killed before it had any."""
        codes = []
        for claim in attempts.read_claims(self.storage):
            stored = attempts.read_verdicts(self.storage, claim.attempt)
            codes.append(stored[0].code if stored else -1)
        return codes

    def of_attempt(self, attempt: int, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events(kind) if e["attempt"] == attempt]

    def committed_after(self, attempt: int) -> int | None:
        """Newest step committed by this attempt or an earlier one."""
        return max((step for n, step, _ in self.commits() if n <= attempt), default=None)

    def reached(self, attempt: int) -> int:
        """Newest step of which this attempt left metrics."""
        lines = read_segments(self.storage, layout.metrics(attempt, 0))
        return max((int(line["step"]) for _, line in lines), default=0)

    def seconds(self) -> float:
        """From the first claim to the last verdict."""
        claims = attempts.read_claims(self.storage)
        (verdict,) = attempts.read_verdicts(self.storage, claims[-1].attempt)
        return parse_iso(verdict.time) - parse_iso(claims[0].time)

    def evaluations(self) -> list[tuple[int, float]]:
        return [
            (e["data"]["step"], e["data"]["metrics"]["eval_loss"]) for e in self.events("evaluated")
        ]

    def manifest(self, number: int = -1) -> CheckpointManifest:
        """Of a commit, the last by default."""
        return checkpoints.read_manifest(self.storage, self.directory_of(number), None)

    def directory_of(self, number: int = -1) -> str:
        """Directory of a commit, relative to the run's."""
        commits = [r.commit() for r in RunLog(self.storage).read().records if r.kind == "commit"]
        return commits[number].directory

    def trainer_state(self) -> dict[str, Any]:
        """What the Trainer stored with the last checkpoint: counters, logged losses.

        Without the evaluations: the last one may follow the last commit (see `evaluations`).
        """
        found = loads(self.storage.get(f"{self.directory_of()}/{TRAINER_STATE}"))
        return {**found, "log_history": [e for e in found["log_history"] if "eval_loss" not in e]}

    def final_state(self) -> dict[str, Any]:
        """All of the last checkpoint: every file's hash, every digest, the Trainer's counters."""
        manifest = self.manifest()
        return {
            "files": {f.path: f.hash for f in manifest.files if not listed_otherwise(f.path)},
            "optimizer": manifest.rank_digests,
            "random": manifest.rng_digests,
            "adapter": manifest.adapter_digest,
            "learning rate": manifest.learning_rate_hex,
            "base": manifest.facts["base_digest"],
            "trainer": self.trainer_state(),
        }

    def seen(self, attempt: int, rank: int) -> dict[str, Any]:
        """What the probe found as this attempt began to train."""
        folder = Path(self.run.job().env["QVL_PROBE_OUT"])
        found = json.loads((folder / f"start-{attempt}-{rank}.json").read_text())
        assert isinstance(found, dict)
        return found

    def kill_all(self) -> bool:
        """SIGKILL agent, helper and ranks; False if the agent had gone already."""
        assert self.step is not None
        pid = pid_of(self.step.row["backend_job_id"] or "")
        if pid is None:
            return False
        kill([pid, *descendants(pid)])
        return True


def listed_otherwise(path: str) -> bool:
    """Compared by content, or only a list of other files with their hashes."""
    return path == TRAINER_STATE or path.startswith(layout.SHARDS)


def assert_same_training(run: TrainingRun, straight: TrainingRun, *, killed: bool = False) -> None:
    """Losses, rates, samples, evaluations, final adapter and final state, bit for bit.

    killed: an evaluation may have been repeated, with the same result, and its event may be lost
        with the helper that had not stored it yet
    """
    if killed:
        assert set(run.evaluations()) <= set(straight.evaluations())
    else:
        assert list(dict.fromkeys(run.evaluations())) == straight.evaluations()
    for rank in (0, 1):
        ours, theirs = run.curve(rank), straight.curve(rank)
        assert sorted(ours) == sorted(theirs) == list(range(1, STEPS + 1))
        for step, row in theirs.items():
            mine = replace(ours[step], attempt=row.attempt, time=row.time)
            assert mine == row, f"rank {rank}, step {step}"
    assert run.outcome() == straight.outcome()
    assert run.final_state() == straight.final_state()
    assert run.storage.get(layout.DONE)
