"""Watching: stop requests, the tombstone, peers that fall silent, a storage that goes away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import StopRecord, VerdictRecord
from orchestrator.errors import StorageError
from orchestrator.helper.watcher import StopWanted, Watcher
from orchestrator.run_directory import attempts
from orchestrator.storage.memory import MemoryStorage
from tests.harness.clock import FakeClock

STOP = StopRecord(attempt=1, slot=1, index=1, reason="SIGTERM", seconds_left=42.0)
LOST = StopWanted("peer-lost: node 1", 60.0)


class Flaky(MemoryStorage):
    """Reads fail while it is away."""

    away = False

    def list(self, prefix: str, *, deep: bool = False) -> list:  # type: ignore[type-arg]
        if self.away:
            raise StorageError("away")
        return super().list(prefix, deep=deep)

    def get(self, path: str) -> bytes:
        if self.away:
            raise StorageError("away")
        return super().get(path)


@pytest.fixture
def storage(memory: MemoryStorage) -> Flaky:
    return Flaky(memory.uri)


def watcher(storage: MemoryStorage, clock: FakeClock, slot: int = 0, nodes: int = 1) -> Watcher:
    return Watcher(
        storage, clock, attempt=1, slot=slot, nodes=nodes, grace_s=60.0, node_lost_s=30.0
    )


def poll(watch: Watcher, clock: FakeClock, seconds: float = 1.0) -> list[StopWanted]:
    clock.advance(seconds)
    return list(watch.poll())


def test_nothing_wanted(storage: Flaky, clock: FakeClock) -> None:
    watch = watcher(storage, clock)
    assert [poll(watch, clock) for _ in range(100)] == [[]] * 100
    assert storage.list("", deep=True) == []


def test_a_stop_request_is_told_once(storage: Flaky, clock: FakeClock) -> None:
    watch = watcher(storage, clock)
    attempts.create_stop(storage, STOP)
    assert poll(watch, clock) == [StopWanted("SIGTERM", 42.0)]
    assert poll(watch, clock) == []
    attempts.create_stop(storage, replace(STOP, reason="SIGUSR1", seconds_left=5.0))
    assert poll(watch, clock) == [StopWanted("SIGUSR1", 5.0)]


def test_requests_of_several_slots_are_all_told(storage: Flaky, clock: FakeClock) -> None:
    attempts.create_stop(storage, STOP)
    attempts.create_stop(storage, replace(STOP, slot=2, reason="preempt"))
    found = poll(watcher(storage, clock), clock)
    assert {w.reason for w in found} == {"SIGTERM", "preempt"}


def test_a_damaged_stop_request_is_served_within_the_grace(
    storage: Flaky, clock: FakeClock
) -> None:
    storage.put(layout.stop(1, 1, 1), b"{")
    assert poll(watcher(storage, clock), clock) == [StopWanted("unreadable", 60.0)]


def test_a_restarted_watcher_takes_the_next_free_index(storage: Flaky, clock: FakeClock) -> None:
    watcher(storage, clock).request("SIGTERM", 28.0, None)
    watcher(storage, clock).request("SIGTERM", 27.0, None)
    assert [s.index for s in attempts.read_stops(storage, 1)] == [1, 2]


def test_stop_requests_of_other_attempts_are_not_ours(storage: Flaky, clock: FakeClock) -> None:
    attempts.create_stop(storage, replace(STOP, attempt=2))
    assert poll(watcher(storage, clock), clock) == []


def test_our_own_request_is_spread_and_not_told_to_ourselves(
    storage: Flaky, clock: FakeClock
) -> None:
    mine, peer = watcher(storage, clock, 0), watcher(storage, clock, 1)
    mine.request("SIGTERM", 50.0, None)
    mine.request("SIGUSR1", 40.0, 3)
    assert poll(mine, clock) == []
    assert poll(peer, clock) == [StopWanted("SIGTERM", 50.0), StopWanted("SIGUSR1", 40.0)]
    stored = [(s.slot, s.index, s.rank) for s in attempts.read_stops(storage, 1)]
    assert stored == [(0, 1, None), (0, 2, 3)]


def test_polls_at_most_once_a_second(storage: Flaky, clock: FakeClock) -> None:
    watch = watcher(storage, clock)
    assert poll(watch, clock) == []
    attempts.create_stop(storage, STOP)
    assert poll(watch, clock, 0.4) == []
    assert poll(watch, clock, 0.4) == []
    assert len(poll(watch, clock, 0.4)) == 1


def test_a_tombstone_is_a_cancel_with_the_whole_grace(storage: Flaky, clock: FakeClock) -> None:
    watch = watcher(storage, clock)
    storage.create(layout.TOMBSTONE, b"{}")
    assert poll(watch, clock) == [StopWanted("cancel", 60.0)]
    assert poll(watch, clock) == []


def test_with_peers_we_beat_every_few_seconds(storage: Flaky, clock: FakeClock) -> None:
    watch = watcher(storage, clock, nodes=2)
    seen = set()
    for _ in range(20):
        poll(watch, clock)
        seen.add(storage.get(layout.heartbeat(1, 0)))
    assert 3 <= len(seen) <= 5


def test_a_peer_that_beats_is_never_lost(storage: Flaky, clock: FakeClock) -> None:
    mine, peer = watcher(storage, clock, 0, 2), watcher(storage, clock, 1, 2)
    for _ in range(300):
        assert poll(mine, clock) == []
        assert poll(peer, clock, 0.0) == []
    assert len(storage.list("attempts/000001/heartbeats/")) == 2


def test_a_peer_whose_clock_is_off_or_jumps_is_never_lost(storage: Flaky, clock: FakeClock) -> None:
    mine = watcher(storage, clock, 0, 2)
    for at in (86_400.0, 0.0, 9e9, -5.0, 12.0):
        peer = watcher(storage, FakeClock(clock.now() + at), 1, 2)
        list(peer.poll())
        assert not any(poll(mine, clock) for _ in range(25))


def test_a_silent_peer_is_lost_once_and_after_node_lost_s(storage: Flaky, clock: FakeClock) -> None:
    mine, peer = watcher(storage, clock, 0, 2), watcher(storage, clock, 1, 2)
    poll(peer, clock)
    found = [poll(mine, clock) for _ in range(80)]
    assert [i for i, f in enumerate(found) if f] == [31]
    assert found[31] == [LOST]


def test_a_peer_that_never_came_is_lost_too(storage: Flaky, clock: FakeClock) -> None:
    mine = watcher(storage, clock, 0, 2)
    found = [poll(mine, clock) for _ in range(80)]
    assert [f for f in found if f] == [[LOST]]


def test_a_peer_that_ended_is_not_lost(storage: Flaky, clock: FakeClock) -> None:
    mine = watcher(storage, clock, 0, 2)
    poll(mine, clock)
    attempts.write_verdict(storage, VerdictRecord(attempt=1, slot=1, code=75, reason="preempted"))
    assert not any(poll(mine, clock) for _ in range(80))


def test_while_the_storage_is_away_no_peer_grows_old(storage: Flaky, clock: FakeClock) -> None:
    """The peer cannot beat either; after the outage it has its full time again."""
    mine, peer = watcher(storage, clock, 0, 2), watcher(storage, clock, 1, 2)
    poll(peer, clock)
    poll(mine, clock)
    storage.away = True
    for _ in range(100):
        clock.advance(1.0)
        with pytest.raises(StorageError):
            list(mine.poll())
    storage.away = False
    assert poll(mine, clock) == []
    assert poll(mine, clock, 25.0) == []
    found = [poll(mine, clock) for _ in range(40)]
    assert [f for f in found if f] == [[LOST]]


def test_a_watcher_that_was_paused_itself_accuses_nobody(storage: Flaky, clock: FakeClock) -> None:
    mine, peer = watcher(storage, clock, 0, 2), watcher(storage, clock, 1, 2)
    poll(peer, clock)
    poll(mine, clock)
    assert poll(mine, clock, 500.0) == []
    assert poll(mine, clock) == []


def test_one_heartbeat_that_cannot_be_read_accuses_nobody(
    storage: Flaky, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, peer = watcher(storage, clock, 0, 2), watcher(storage, clock, 1, 2)
    poll(peer, clock)
    poll(mine, clock)
    real = storage.get

    def get(path: str) -> bytes:
        if "heartbeats" in path:
            raise StorageError("input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "get", get)
        assert not any(poll(mine, clock) for _ in range(60))
    assert poll(mine, clock) == []
    assert [LOST] in [poll(mine, clock) for _ in range(40)]


def test_peers_that_cannot_write_either_are_not_lost(storage: Flaky, clock: FakeClock) -> None:
    """A full disk silences every node at once: each reads, none can show that it lives."""
    both = [watcher(storage, clock, slot, nodes=2) for slot in (0, 1)]
    assert [list(watch.poll()) for watch in both] == [[], []]
    put = storage.put

    def full(path: str, data: bytes) -> None:
        raise StorageError("No space left on device")

    storage.put = full  # type: ignore[method-assign]
    for _ in range(600):
        clock.advance(1.0)
        assert [list(watch.poll()) for watch in both] == [[], []]
    storage.put = put  # type: ignore[method-assign]
    for _ in range(60):
        clock.advance(1.0)
        assert [list(watch.poll()) for watch in both] == [[], []]
    silent = [poll(both[0], clock) for _ in range(60)]
    assert [LOST] in silent, "a peer that is gone is still noticed"
