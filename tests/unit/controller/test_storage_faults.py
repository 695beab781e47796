"""A controller outlives whatever its storage does, and goes on by itself when that has ended."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import JobRef, Observation, Submission
from orchestrator.backends.local.backend import CAPABILITIES
from orchestrator.contract import layout
from orchestrator.contract.records import LeaseRecord, SubmissionId
from orchestrator.controller import __main__ as entry
from orchestrator.controller import backoff, loop
from orchestrator.controller.backoff import LONGEST_S, Backoff
from orchestrator.controller.lease import Lease, newest
from orchestrator.controller.reconcile import Step
from orchestrator.controller.run import Run
from orchestrator.errors import NoSuchRun, QvlError, RecordDamaged, StorageError, UserError
from orchestrator.run_directory import attempts
from orchestrator.storage.protocol import Refused
from tests.harness.clock import FakeClock
from tests.harness.faulty import Faulty, until
from tests.harness.runs import Bench
from tests.unit.cli.shells import Built

BUSY = StorageError("s3://b/r: https://s3 says SlowDown: busy")
EXPIRED = StorageError("s3://b/r: the credentials have expired (https://s3)")
NO_KEYS = Refused("s3://b/r: the access key is not known there")
FULL = StorageError("lease/000002.json: No space left on device")
BROKEN = StorageError("log: Input/output error")
OPEN = UserError("/runs can be written by others (mode 0777)")
RAW = OSError(errno.ESTALE, "Stale file handle")
REGISTRY = sqlite3.OperationalError("database or disk is full")
WRITES = ("create", "put", "delete")


@dataclass
class Jobs:
    """A backend whose first job is at work until `ends`; every later one at once for good."""

    clock: FakeClock
    ends: float
    capabilities: Any = field(default_factory=lambda: replace(CAPABILITIES, poll_s=1.0))
    submitted: list[str] = field(default_factory=list)

    def prepare(self, job: Any, spec: Any) -> Submission:
        return Submission(number=spec.submission, spec=spec, text="")

    def submit(self, submission: Submission, key: str) -> JobRef:
        self.submitted.append(key)
        return JobRef("second", key)

    def observe(self, jobs: Sequence[JobRef]) -> dict[JobRef, Observation]:
        gone = "second" in map(str, jobs) or self.clock.now() >= self.ends
        return {j: Observation(phase="gone" if gone else "running") for j in jobs}

    def cancel(self, job: JobRef) -> None:
        raise AssertionError("nobody cancels here")


@dataclass
class Scene:
    """A run whose first job goes away in the middle of what its storage has."""

    run: Run
    storage: Faulty
    clock: FakeClock
    jobs: Jobs
    said: list[str] = field(default_factory=list)

    def follow(self) -> Step:
        """The controller, until the second job has been submitted and the run cancelled."""
        lease = Lease(self.storage, self.clock)
        step = loop.follow(self.run, self.clock, lease, Backoff(self.clock, self.said.append))
        assert step is not None
        return step


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    bench = Bench(tmp_path)
    built = Built(bench)
    clock = FakeClock(1_800_000_000.0)
    built.storage.delete(layout.TOMBSTONE)
    attempts.record_backend_id(built.storage, SubmissionId(number=1, backend_id="first"))
    storage = Faulty(built.storage)
    jobs = Jobs(clock, ends=clock.now() + 60.0)
    scene = Scene(Run(built.entry, bench.registry, storage, jobs, clock), storage, clock, jobs)

    sleep = clock.sleep

    def rest(seconds: float) -> None:
        if jobs.submitted:
            built.storage.create(layout.TOMBSTONE, b"{}")
        sleep(seconds)

    clock.sleep = rest  # type: ignore[method-assign]
    return scene


@pytest.mark.parametrize("seconds", [20.0, 600.0, pytest.param(90_000.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("fault", "verbs"),
    [
        (BUSY, ()),
        (EXPIRED, ()),
        (NO_KEYS, ()),
        (FULL, WRITES),
        (BROKEN, ()),
        (OPEN, ()),
        (RAW, ()),
    ],
)
def test_the_run_is_requeued_once_the_storage_is_back(
    scene: Scene, fault: Exception, verbs: tuple[str, ...], seconds: float
) -> None:
    back = scene.clock.now() + 50.0 + seconds
    begins = scene.clock.now() + 50.0
    plan = until(scene.clock.now, back, fault, *verbs)
    scene.storage.plan = lambda v, p: plan(v, p) if scene.clock.now() >= begins else None
    step = scene.follow()
    assert step.state == "CANCELLED"
    assert scene.jobs.submitted == ["fake-261124-abc123-2"]
    (record,) = [r for r in attempts.read_submissions(scene.storage) if r.number == 2]
    assert record.reason == "requeue"
    assert record.spec.submission == 2
    requeued = backoff.iso(back + 2 * LONGEST_S)
    assert record.time <= requeued, "it came back long after its storage"
    assert len(scene.said) <= 2, scene.said


def test_the_lease_is_known_again_after_a_lost_reply(scene: Scene) -> None:
    lease = Lease(scene.storage, scene.clock)
    scene.storage.lose = lambda verb, _: BUSY if verb == "create" else None
    with pytest.raises(StorageError):
        lease.acquire()
    scene.storage.lose = lambda *_: None
    assert lease.acquire()
    held = newest(scene.storage)
    assert held is not None
    assert not Lease(scene.storage, scene.clock).acquire()


def test_a_lease_that_was_given_back_without_a_reply_is_taken_anew(scene: Scene) -> None:
    lease = Lease(scene.storage, scene.clock)
    assert lease.acquire()
    scene.storage.lose = lambda verb, _: BUSY if verb == "create" else None
    assert not lease.release()
    scene.storage.lose = lambda *_: None
    assert lease.acquire()
    held = newest(scene.storage)
    assert held is not None
    assert not held.released


def test_a_damaged_lease_record_keeps_nobody_away(scene: Scene) -> None:
    assert Lease(scene.storage, scene.clock).acquire()
    scene.storage.put(layout.lease(1), b"{")
    assert Lease(scene.storage, scene.clock).acquire()


def test_a_run_that_was_removed_ends_its_controller_and_is_not_made_anew(scene: Scene) -> None:
    folder = Path(scene.storage.uri)
    ends = scene.clock.now() + 5.0
    sleep = scene.clock.sleep

    def removed(seconds: float) -> None:
        sleep(seconds)
        if scene.clock.now() >= ends:
            shutil.rmtree(folder, ignore_errors=True)

    scene.clock.sleep = removed  # type: ignore[method-assign]
    with pytest.raises(NoSuchRun, match="holds the run no longer"):
        scene.follow()
    assert not folder.exists()


def test_a_file_system_that_is_not_mounted_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(scene.storage.uri)
    away = folder.with_name("elsewhere")
    begins, back = scene.clock.now() + 5.0, scene.clock.now() + 5000.0
    sleep = scene.clock.sleep

    def mounted(seconds: float) -> None:
        sleep(seconds)
        inside = begins <= scene.clock.now() < back
        if inside and folder.exists():
            folder.rename(away)
        elif not inside and away.exists():
            away.rename(folder)

    scene.clock.sleep = mounted  # type: ignore[method-assign]
    monkeypatch.setattr(backoff, "file_system", lambda run: 7 if folder.exists() else 1)
    monkeypatch.setattr(loop, "file_system", lambda run: 7 if folder.exists() else 1)
    assert scene.follow().state == "CANCELLED"
    assert scene.jobs.submitted


def test_damage_does_not_keep_the_lease_from_who_mends_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    mend, faults = loop.reconcile, [RecordDamaged("damaged")] * 3

    def damaged(run: Run) -> loop.Step:
        if faults:
            raise faults.pop()
        return mend(run)

    monkeypatch.setattr(loop, "reconcile", damaged)
    sleep, live = scene.clock.sleep, []

    def mended(seconds: float) -> None:
        held = newest(scene.storage)
        live.append(held is not None and not held.released)
        sleep(seconds)

    scene.clock.sleep = mended  # type: ignore[method-assign]
    assert scene.follow().state == "CANCELLED"
    assert live[:3] == [False, False, False]


# --- the fleet, one pass, a command ---------------------------------------------------------


def test_a_fleet_outlives_every_fault_and_leaves_a_failing_run_alone_for_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_entry", lambda *_: scene.run)
    monkeypatch.setattr(loop, "load_backend", lambda *_: scene.jobs)
    rounds = loop.Rounds(scene.run.registry, scene.clock)
    found: list[Any] = []
    for fault in (BUSY, NO_KEYS, OPEN, RAW, REGISTRY):
        scene.storage.plan = lambda *_, fault=fault: fault
        rounds.once(lambda _, what: found.append(what))
        asked = scene.storage.asked.total()
        rounds.once(lambda _, what: found.append(what))
        assert scene.storage.asked.total() == asked, "it was not left alone"
        scene.clock.advance(LONGEST_S)
    assert all(isinstance(f, QvlError) for f in found)
    assert len(found) == 5
    scene.storage.plan = lambda *_: None
    rounds.once(lambda _, what: found.append(what))
    assert isinstance(found[-1], Step)


def test_a_fleet_knows_its_lease_that_could_not_be_given_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_entry", lambda *_: scene.run)
    monkeypatch.setattr(loop, "load_backend", lambda *_: scene.jobs)
    scene.storage.inner.create(layout.TOMBSTONE, b"{}")
    scene.jobs.ends = 0.0
    rounds = loop.Rounds(scene.run.registry, scene.clock)
    creates = 0

    def only_the_release_fails(verb: str, path: str) -> Exception | None:
        nonlocal creates
        creates += verb == "create" and path.startswith(layout.LEASE)
        return FULL if creates == 2 else None

    scene.storage.plan = only_the_release_fails
    found: list[Any] = []
    rounds.once(lambda _, what: found.append(what))
    assert found[-1].state == "CANCELLED"
    # As a run that waits for a person: looked at again at the next pass.
    scene.run.registry.saw(scene.run.run_id, {**found[-1].row}, final=False, at=0.0)
    scene.storage.plan = lambda *_: None
    rounds.once(lambda _, what: found.append(what))
    assert len(found) == 2, "its own lease kept it away"


@pytest.mark.parametrize("fault", [BUSY, OPEN, RAW, REGISTRY])
def test_one_pass_reports_every_fault(
    scene: Scene, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "open_entry", lambda *_: scene.run)
    monkeypatch.setattr(loop, "load_backend", lambda *_: scene.jobs)
    scene.storage.plan = lambda *_: fault
    found: list[Any] = []
    assert loop.once(scene.run.registry, scene.clock, lambda _, what: found.append(what)) == 1
    assert isinstance(found[0], QvlError)


def test_a_command_whose_pass_fails_leaves_a_controller(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(loop, "detach", lambda _, run_id: left.append(run_id))
    scene.storage.plan = lambda verb, path: BUSY if path.startswith(layout.LOG) else None
    with pytest.raises(StorageError):
        loop.look_after(scene.run)
    assert left == [scene.run.run_id]


# --- two controllers ------------------------------------------------------------------------


def record(host: str, **more: Any) -> LeaseRecord:
    return LeaseRecord(**{"seq": 1, "owner": "o", "expires_at": "", "host": host, **more})


HERE = os.uname().nodename


@pytest.mark.parametrize(
    ("held", "renewed", "leaves"),
    [
        (record(HERE), record(HERE), True),
        (record("far"), record("far"), False),
        (record("far"), record("far", seq=2), True),
        (record(HERE, lasting=False), record(HERE, lasting=False), False),
        (record(HERE), record(HERE, released=True, seq=2), False),
    ],
)
def test_a_second_controller_leaves_only_for_one_that_stays(
    clock: FakeClock, held: LeaseRecord, renewed: LeaseRecord, leaves: bool
) -> None:
    other = entry.Other(clock)
    assert not other.stays(held)
    clock.advance(entry.TAKEN_S + 1)
    assert other.stays(renewed) is leaves


def test_older_records_are_of_controllers_that_stay(clock: FakeClock) -> None:
    from orchestrator.contract.jsonio import from_json

    old = {"seq": 1, "owner": "o", "expires_at": "", "host": HERE, "schema": 1}
    assert from_json(LeaseRecord, json.loads(json.dumps(old))).lasting


def test_words_are_told_once_and_a_full_log_costs_only_them(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    waits = Backoff(clock, said.append)
    pauses = [waits.met(BUSY) for _ in range(50)]
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert max(pauses) == LONGEST_S
    waits.met(FULL)
    waits.over()
    assert [line.split(" ", 1)[1].splitlines()[0] for line in said] == [
        str(BUSY), str(FULL), "goes on after 0 s",
    ]  # fmt: skip

    class Full:
        def write(self, _: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    backoff.tell("lost")
