"""Jobs of a cluster that wait, linger or were given back: what a pass of the controller does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import Found, JobRef, Observation, Submission
from orchestrator.backends.kubernetes.backend import CAPABILITIES
from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import (
    ArrivalRecord,
    Done,
    SlotRecord,
    SubmissionId,
    VerdictRecord,
)
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.controller.reconcile import Step, reconcile
from orchestrator.controller.run import Run, open_entry
from orchestrator.run_directory import attempts
from tests.harness.runs import Bench
from tests.unit.cli.shells import Built


@dataclass
class Cluster:
    """A backend that says what a test wants, and remembers what it was told to do."""

    seen: Observation
    told: list[tuple[Any, ...]] = field(default_factory=list)
    capabilities: Any = CAPABILITIES

    def prepare(self, job: ResolvedJob, spec: TrainSpec) -> Submission:
        return Submission(number=spec.submission, spec=spec, text="")

    def submit(self, submission: Submission, key: str) -> JobRef:
        self.told.append(("submit", submission.number))
        self.seen = Observation(phase="pending")
        return JobRef(f"ns/run-{submission.number}", key)

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        return dict.fromkeys(jobs, self.seen)

    def notify(self, job: JobRef, signal: str, rank: int | None) -> None:
        raise AssertionError

    def cancel(self, job: JobRef) -> None:
        self.told.append(("cancel",))

    def withdraw(self, job: JobRef, why: str) -> None:
        self.told.append(("withdraw", why))

    def give_back(self, job: JobRef, why: str) -> None:
        self.told.append(("give back", why))
        now = SystemClock().now()
        self.seen = Observation(phase="absent", given_back=1, since=now, detail=why)

    def end(self, job: JobRef, ending: str, why: str) -> None:
        self.told.append(("end", ending, why))
        self.seen = replace(self.seen, lingers=False)

    def forget_secrets(self, run_id: str, backend_id: str) -> None:
        raise AssertionError

    def forget_run(self, run_id: str, backend_id: str) -> None:
        raise AssertionError

    def start_controller(self, job: ResolvedJob, spec: TrainSpec) -> str:
        raise AssertionError

    def discover(self) -> Sequence[Found]:
        return ()


class Place:
    """A run on such a cluster, submitted once."""

    def __init__(self, built: Built, seen: Observation) -> None:
        self.built = built
        self.storage = built.storage
        self.storage.delete(layout.TOMBSTONE)
        attempts.record_backend_id(self.storage, SubmissionId(number=1, backend_id="ns/run-1"))
        self.cluster = Cluster(seen)
        opened = open_entry(built.registry, built.entry, SystemClock())
        self.run: Run = replace(opened, backend=self.cluster)

    def look(self) -> Step:
        return reconcile(self.run)

    def end_attempt(self, code: int, notice: str | None = None) -> None:
        self.built.claim(1)
        self.built.log.append("fence", 1)
        common: dict[str, Any] = {"attempt": 1, "slot": 0}
        slot = SlotRecord(**common, token="t1", host="h", address="", port=0, pid=1, backend_id="1")
        assert attempts.create_slot(self.storage, slot) is None
        verdict = VerdictRecord(**common, code=code, reason="r", notice=notice)
        attempts.write_verdict(self.storage, verdict)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(Bench(tmp_path))


def test_a_job_that_a_person_suspends_waits_and_goes_on(built: Built) -> None:
    """Not undone by a new submission, and what it stopped is not counted."""
    waiting = Observation(phase="pending", suspended=True, detail="suspended by hand")
    place = Place(built, waiting)
    place.end_attempt(76, notice="SIGTERM")
    for _ in range(3):
        step = place.look()
        assert (step.state, step.row["message"]) == ("REQUEUED", "suspended by hand")
    assert place.cluster.told == []
    place.cluster.seen = Observation(phase="running")
    assert place.look().settled is False
    place.cluster.seen = Observation(phase="gone", ending="preempted", suspended=True)
    place.look()
    assert place.cluster.told == [("submit", 2)]
    assert attempts.read_submissions(place.storage)[-1].suspended


def test_a_job_that_a_queue_suspends_is_submitted_anew(built: Built) -> None:
    place = Place(built, Observation(phase="pending", detail="suspended: its queue"))
    place.end_attempt(76, notice="SIGTERM")
    place.look()
    assert place.cluster.told == [("submit", 2)]


@pytest.mark.parametrize("phase", ["pending", "running", "unknown"])
def test_what_outlives_a_finished_attempt_is_ended(built: Built, phase: Any) -> None:
    """And the run is not left before: nobody else would free its GPUs. A short one may have
    ended before the server says that its pod was started.
    """
    place = Place(built, Observation(phase=phase))
    place.end_attempt(0)
    place.built.log.append("done", 1, to_json(Done(commit_seq=1, step=1, adapter_sha256="")))
    step = place.look()
    assert (step.state, step.settled, built.registry.find(built.entry.run_id).final) == (
        "SUCCEEDED",
        False,
        False,
    )
    place.cluster.seen = Observation(phase="gone", ending="completed", lingers=True, detail="d")
    monkey = place.cluster
    monkey.forget_secrets = lambda *_: None  # type: ignore[method-assign,assignment]
    step = place.look()
    assert (step.settled, monkey.told) == (True, [("end", "completed", "d")])
    assert built.registry.find(built.entry.run_id).final


def test_a_crash_beside_a_container_that_goes_on_is_tried_again(built: Built) -> None:
    place = Place(built, Observation(phase="gone", ending="oom", lingers=True, detail="memory"))
    place.end_attempt(1)
    assert place.look().row["reason"] == "failed (memory)"
    assert place.cluster.told == [("end", "oom", "memory")]


def test_a_job_without_room_is_given_back_and_comes_again_under_its_number(built: Built) -> None:
    words = "waits for 1 of 2 pods: no node has room"
    place = Place(built, Observation(phase="running", detail=words))
    assert (place.look().state, place.look().row["message"]) == ("STARTING", words)
    place.cluster.seen = Observation(phase="running", no_room=True, detail=words)
    step = place.look()
    assert (step.state, step.row["reason"], step.row["message"]) == ("QUEUED", "no room", words)
    assert step.row["next"].startswith("next attempt in ")
    assert place.cluster.told == [("give back", words)]
    place.cluster.seen = replace(place.cluster.seen, since=0.0)
    place.look()
    assert place.cluster.told[1:] == [("submit", 1)]
    assert len(attempts.read_submissions(place.storage)) == 1


def test_a_job_that_was_started_while_it_was_given_back_has_ended(built: Built) -> None:
    place = Place(built, Observation(phase="absent", given_back=1, since=0.0))
    place.end_attempt(76, notice="SIGTERM")
    place.look()
    assert place.cluster.told == [("submit", 2)]


def test_last_words_of_agents_that_claimed_nothing_are_shown(built: Built) -> None:
    place = Place(built, Observation(phase="gone", ending="failed", detail="p: exit code 1"))
    left = ArrivalRecord(
        token="t", backend_id="b", slot=0, host="h", reason="peers", words="node 1 did not come"
    )
    attempts.put_arrival(place.storage, 1, 0, left)
    row = place.look().row
    assert row["reason"] == "not all nodes came"
    assert row["message"] == "node 1 did not come; p: exit code 1"
