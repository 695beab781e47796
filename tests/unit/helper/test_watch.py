"""Watching: stop requests, the tombstone, peers that fall silent, a storage that goes away."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.clock import FakeClock
from orchestrator.contract import layout
from orchestrator.contract.records import StopRecord, VerdictRecord
from orchestrator.errors import CheckpointError, StorageError
from orchestrator.helper.watch import StopWanted, Watcher
from orchestrator.storage import attempts
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Entry

_numbers = itertools.count()
LOST_S = 60.0


class Flaky(MemoryStorage):
    away = False

    def get(self, path: str) -> bytes:
        if self.away:
            raise StorageError("away")
        return super().get(path)

    def list(self, prefix: str, *, deep: bool = False) -> list[Entry]:
        if self.away:
            raise StorageError("away")
        return super().list(prefix, deep=deep)


@pytest.fixture
def storage() -> Flaky:
    return Flaky(f"memory://watch-{next(_numbers)}")


def watcher(storage: MemoryStorage, clock: FakeClock, slot: int = 0, nodes: int = 1) -> Watcher:
    return Watcher(
        storage, clock, attempt=1, slot=slot, nodes=nodes, grace_s=30, node_lost_s=LOST_S
    )


def stop(storage: MemoryStorage, reason: str, left: float, slot: int = 1, attempt: int = 1) -> None:
    record = StopRecord(attempt=attempt, slot=slot, index=1, reason=reason, seconds_left=left)
    attempts.create_stop(storage, record)


def beat(storage: MemoryStorage, slot: int, at: float) -> None:
    storage.put(layout.heartbeat(1, slot), b'{"at":%f}' % at)


def pass_time(me: Watcher, clock: FakeClock, seconds: float) -> list[StopWanted]:
    """Second by second, as the session does."""
    found = []
    for _ in range(int(seconds)):
        clock.advance(1.0)
        found += list(me.poll())
    return found


def test_a_stop_request_is_told_once(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock)
    assert list(me.poll()) == []
    stop(storage, "SIGTERM", 25.0)
    assert list(me.poll()) == [], "not twice a second"
    clock.advance(1.0)
    assert list(me.poll()) == [StopWanted("SIGTERM", 25.0)]
    assert pass_time(me, clock, 5) == []


def test_later_requests_of_the_same_slot_and_of_others_are_told_too(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock)
    stop(storage, "SIGUSR1", 30.0)
    stop(storage, "SIGTERM", 10.0)
    stop(storage, "preempt", 20.0, slot=2)
    assert {w.reason for w in me.poll()} == {"SIGUSR1", "SIGTERM", "preempt"}


def test_stops_of_another_attempt_are_not_ours(storage: Flaky) -> None:
    stop(storage, "SIGTERM", 10.0, attempt=2)
    assert list(watcher(storage, FakeClock()).poll()) == []


def test_our_own_requests_are_spread_and_do_not_come_back(storage: Flaky) -> None:
    clock = FakeClock()
    me, peer = watcher(storage, clock), watcher(storage, clock, slot=1)
    me.request("SIGTERM", 28.0, None)
    me.request("SIGUSR1", 20.0, 3)
    assert list(me.poll()) == []
    assert set(peer.poll()) == {StopWanted("SIGTERM", 28.0), StopWanted("SIGUSR1", 20.0)}
    assert {(r.slot, r.index, r.rank) for r in attempts.read_stops(storage, 1)} == {
        (0, 1, None),
        (0, 2, 3),
    }


def test_a_restarted_watcher_takes_the_next_free_index(storage: Flaky) -> None:
    watcher(storage, FakeClock()).request("SIGTERM", 28.0, None)
    watcher(storage, FakeClock()).request("SIGTERM", 27.0, None)
    assert len(attempts.read_stops(storage, 1)) == 2


def test_the_tombstone_is_told_once_with_the_whole_grace(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock)
    storage.put(layout.TOMBSTONE, b"x")
    assert list(me.poll()) == [StopWanted("cancel", 30)]
    assert pass_time(me, clock, 5) == []


def test_a_damaged_stop_request_is_an_error_that_says_where(storage: Flaky) -> None:
    storage.put(layout.stop(1, 1, 1), b"{")
    with pytest.raises(CheckpointError, match="stop/1-1.json is damaged"):
        list(watcher(storage, FakeClock()).poll())


def test_a_peer_is_lost_when_its_heartbeat_stands_still(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock, nodes=2)
    for turn in range(5):
        beat(storage, 1, turn)
        assert pass_time(me, clock, LOST_S - 5) == []
    assert pass_time(me, clock, 4) == []
    assert pass_time(me, clock, 5) == [StopWanted("peer-lost: node 1", 30)]
    assert pass_time(me, clock, 3 * LOST_S) == [], "told once"


def test_a_peer_that_never_comes_is_lost_too(storage: Flaky) -> None:
    clock = FakeClock()
    assert pass_time(watcher(storage, clock, nodes=2), clock, LOST_S + 3) == [
        StopWanted("peer-lost: node 1", 30)
    ]


def test_the_peers_clock_does_not_matter(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock, nodes=2)
    for at in (0.0, 9e9, -5.0, 12.0):
        beat(storage, 1, at)
        assert pass_time(me, clock, LOST_S - 5) == []


def test_a_peer_that_has_ended_is_not_lost(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock, nodes=2)
    beat(storage, 1, 0)
    pass_time(me, clock, 5)
    attempts.write_verdict(storage, VerdictRecord(attempt=1, slot=1, code=75, reason="preempted"))
    assert pass_time(me, clock, 3 * LOST_S) == []


def test_we_beat_ourselves_and_only_with_peers(storage: Flaky) -> None:
    clock = FakeClock()
    pass_time(watcher(storage, clock), clock, 20)
    assert storage.list("", deep=True) == []
    me = watcher(storage, clock, nodes=2)
    seen = set()
    for _ in range(20):
        pass_time(me, clock, 1)
        seen.add(storage.get(layout.heartbeat(1, 0)))
    assert 3 <= len(seen) <= 5


def test_while_the_storage_is_away_nobody_is_lost(storage: Flaky) -> None:
    """The peer could not write in that time either; it gets its time anew."""
    clock = FakeClock()
    me = watcher(storage, clock, nodes=2)
    beat(storage, 1, 0)
    pass_time(me, clock, LOST_S - 10)
    storage.away = True
    for _ in range(200):
        clock.advance(1.0)
        with pytest.raises(StorageError):
            list(me.poll())
    storage.away = False
    assert pass_time(me, clock, LOST_S - 5) == []
    beat(storage, 1, 1)
    assert pass_time(me, clock, LOST_S - 5) == []
    assert len(pass_time(me, clock, LOST_S)) == 1


def test_a_helper_that_was_paused_accuses_nobody(storage: Flaky) -> None:
    clock = FakeClock()
    me = watcher(storage, clock, nodes=2)
    beat(storage, 1, 0)
    pass_time(me, clock, 5)
    clock.advance(1000.0)
    assert list(me.poll()) == []
    assert pass_time(me, clock, LOST_S - 5) == []
