"""Watching the run directory for what other nodes and people want of this attempt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.jsonio import canonical
from orchestrator.contract.records import StopRecord
from orchestrator.domain.verdict import CANCEL
from orchestrator.errors import StorageError
from orchestrator.run_directory import attempts
from orchestrator.storage.protocol import NotFound, Storage

POLL_S = 1.0
HEARTBEAT_S = 5.0
_ORDERLY = (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.PREEMPTED_NOTHING_NEW)
"""How a peer ends without leaving us alone: finished, or by a notice that reaches us too."""


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A stop request that the agent must serve, counted from now."""

    reason: str
    seconds_left: float


@dataclass(frozen=True, slots=True)
class PeerEnded:
    """A node of this attempt ended in failure while we go on: our ranks may wait for ever."""

    node: int


class Watcher:
    """Polls stop requests, the tombstone and the peers' heartbeats; call `poll` often."""

    def __init__(  # noqa: PLR0913
        self,
        storage: Storage,
        clock: Clock,
        *,
        attempt: int,
        slot: int,
        nodes: int,
        grace_s: float,
        node_lost_s: float,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._attempt = attempt
        self._slot = slot
        self._nodes = nodes
        self._grace_s = grace_s
        self._node_lost_s = node_lost_s
        self._seen: set[tuple[int, int]] = set()
        self._failed: set[int] = set()
        self._cancelled = False
        self._polled = -POLL_S
        self._beat = -HEARTBEAT_S
        self._looked = 0.0
        self._peers: dict[int, tuple[bytes, float]] = {}

    def request(self, reason: str, seconds_left: float, rank: int | None) -> None:
        """Spread a notice of this node to the others. Best effort: a storage may be away."""
        record = StopRecord(
            attempt=self._attempt,
            slot=self._slot,
            index=len(self._seen) + 1,
            reason=reason,
            seconds_left=seconds_left,
            rank=rank,
            time=iso(self._clock.now()),
        )
        stored = attempts.create_stop(self._storage, record)
        self._seen.add((stored.slot, stored.index))

    def poll(self) -> Iterator[StopWanted | PeerEnded]:
        """New stop requests of others and news of the peers, at most once a second."""
        now = self._clock.monotonic()
        if now - self._polled < POLL_S:
            return
        self._polled = now
        for record in attempts.read_stops(self._storage, self._attempt):
            key = (record.slot, record.index)
            if key not in self._seen:
                self._seen.add(key)
                yield StopWanted(record.reason, min(record.seconds_left, self._grace_s))
        if not self._cancelled and attempts.has_tombstone(self._storage):
            self._cancelled = True
            yield StopWanted(CANCEL, self._grace_s)
        if self._nodes > 1:
            yield from self._peer_news(now)

    def _peer_news(self, now: float) -> Iterator[StopWanted | PeerEnded]:
        if now - self._beat >= HEARTBEAT_S:
            self._beat = now
            self._send_beat(now)
        if now - self._looked > 2 * HEARTBEAT_S:
            self._forget_time(now)
        self._looked = now
        verdicts = attempts.read_verdicts(self._storage, self._attempt)
        for verdict in verdicts:
            if verdict.code not in _ORDERLY and verdict.slot not in self._failed | {self._slot}:
                self._failed.add(verdict.slot)
                yield PeerEnded(verdict.slot)
        ended = {v.slot for v in verdicts}
        for peer in range(self._nodes):
            if peer != self._slot and peer not in ended and self._silent(peer, now):
                self._peers[peer] = (b"lost", float("inf"))
                yield StopWanted(f"peer-lost: node {peer}", self._grace_s)

    def _send_beat(self, now: float) -> None:
        """Show that we live. What keeps us from writing may keep the others from it too."""
        beat = canonical({"at": self._clock.now()})
        try:
            self._storage.put(layout.heartbeat(self._attempt, self._slot), beat)
        except StorageError:
            self._forget_time(now)

    def _forget_time(self, now: float) -> None:
        """We saw nothing for a while (storage away, or paused ourselves): all have time anew."""
        for peer, (beat, since) in self._peers.items():
            self._peers[peer] = (beat, max(since, now))

    def _silent(self, peer: int, now: float) -> bool:
        """True if the peer's heartbeat stood still for `node_lost_s` of our clock."""
        try:
            beat = self._storage.get(layout.heartbeat(self._attempt, peer))
        except NotFound:
            beat = b""
        except StorageError:
            if peer in self._peers:
                beat, since = self._peers[peer]
                self._peers[peer] = (beat, max(since, now))
            return False
        known = self._peers.get(peer)
        if known is None or known[0] not in (beat, b"lost"):
            self._peers[peer] = (beat, now)
            return False
        return now - known[1] > self._node_lost_s
