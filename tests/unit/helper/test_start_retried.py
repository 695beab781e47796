"""A helper whose storage fails when it is to claim: it waits, and gives up with the words."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.identity import Identity
from orchestrator.contract import layout
from orchestrator.contract.wire import LineBuffer
from orchestrator.errors import StorageError
from orchestrator.helper import session
from orchestrator.helper.retry import START_S
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import read_events
from tests.harness.clock import FakeClock
from tests.harness.faulty import Faulty, until
from tests.harness.runs import Bench
from tests.unit.cli.shells import Built

FULL = StorageError("attempts/000001.json: No space left on device")
ME = Identity(backend_id="job", restart_count=0, slot=0, host="here")


class Starting:
    """A helper process in this one, and the agent's end of its link."""

    def __init__(self, folder: Path) -> None:
        built = Built(Bench(folder))
        built.storage.delete(layout.TOMBSTONE)
        self.clock = FakeClock()
        self.storage = Faulty(built.storage)
        self._spec = attempts.read_submissions(built.storage)[0].spec

    def session(self) -> tuple[session.Session, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        return session.Session(self.storage, self.clock, self._spec, ME, "token", theirs), ours

    def begin(self, *, rejoin: bool = False) -> tuple[socket.socket, threading.Thread]:
        helper, ours = self.session()
        thread = threading.Thread(target=helper.run, kwargs={"rejoin": rejoin}, daemon=True)
        thread.start()
        return ours, thread

    def run(self) -> dict[str, Any]:
        """What the helper says first."""
        ours, thread = self.begin()
        buffer, found = LineBuffer(), []
        try:
            while not found:
                found = list(buffer.feed(ours.recv(1 << 16)))
        finally:
            ours.close()
        thread.join(20)
        return dict(found[0])


@pytest.fixture
def starting(tmp_path: Path) -> Starting:
    return Starting(tmp_path)


@pytest.mark.parametrize("verbs", [("create",), ("get", "list"), ("put",), ()])
def test_a_fault_of_seconds_or_a_minute_costs_only_the_time(
    starting: Starting, verbs: tuple[str, ...]
) -> None:
    end = starting.clock.now() + START_S / 2
    starting.storage.plan = until(starting.clock.now, end, FULL, *verbs)
    assert starting.run()["t"] == "assigned"
    assert [c.attempt for c in attempts.read_claims(starting.storage)] == [1]
    assert [r.kind for r in RunLog(starting.storage).read().records] == ["fence"]


def test_a_lost_reply_to_any_record_of_the_start_claims_once(starting: Starting) -> None:
    left = [layout.claim(1), layout.log_record(1), layout.slot(1, 0)]

    def lose(verb: str, path: str) -> Exception | None:
        if verb == "create" and path in left:
            left.remove(path)
            return StorageError("the reply was lost")
        return None

    starting.storage.lose = lose
    assert starting.run()["t"] == "assigned"
    assert left == []
    assert [c.attempt for c in attempts.read_claims(starting.storage)] == [1]
    assert [s.slot for s in attempts.read_slots(starting.storage, 1)] == [0]


def test_a_fault_that_stays_is_told_and_claims_nothing(starting: Starting) -> None:
    starting.storage.plan = lambda verb, _: FULL if verb == "create" else None
    said = starting.run()
    assert (said["t"], said["reason"]) == ("refused", "storage")
    assert "No space left" in said["message"]
    assert attempts.read_claims(starting.storage) == []


def test_a_restarted_helper_waits_as_long_as_it_takes(starting: Starting) -> None:
    assert starting.run()["t"] == "assigned"
    back = starting.clock.now() + 100_000.0
    starting.storage.plan = until(starting.clock.now, back, FULL)
    ours, thread = starting.begin(rejoin=True)
    end = time.monotonic() + 20
    while starting.clock.now() < back and time.monotonic() < end:
        time.sleep(0.02)
    assert starting.clock.now() >= back
    ours.close()
    thread.join(20)
    told = [e["data"].get("message") for e in read_events(starting.storage, 1, ("warning",))]
    assert told == ["the storage helper was restarted"]
