"""Before an attempt of several nodes is claimed: is an agent of every node there?

A node that comes alone would claim an attempt that can never train, and its failure would be
the run's. So each agent says again and again that it is there, and one of them claims as soon
as all of them do. Nothing here decides who owns the attempt: that is the claim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from orchestrator.agent.identity import Identity
from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.contract.records import ArrivalRecord
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import PeersMissing, StorageError
from orchestrator.run_directory import attempts
from orchestrator.storage.protocol import NotFound, Storage

POLL_S = 0.5
ALIVE_S = 5.0
"""An arrival that has not changed for so long is a dead agent's."""
LOOK_AGAIN_S = 5.0
"""How often whoever waits asks anew whether its start is still wanted."""
PATIENCE = 15.0
"""How long the others may take, in units of `node_lost_s`: images and prologs are slow."""


class NoticeMet(Exception):
    """The agent was told to stop while nothing was claimed yet."""


class Gathering:
    """One agent among those of its start. `interrupted`: whether its agent is to stop."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        spec: TrainSpec,
        identity: Identity,
        token: str,
        interrupted: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._spec = spec
        self._identity = identity
        self._token = token
        self._interrupted = interrupted
        self._beat = 0
        self._since: float | None = None
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each other agent: its beat, and when that was seen to change."""

    def complete(self, attempt: int) -> bool:
        """True once all nodes are there; False when it is worth asking who may start: somebody
        has claimed this attempt, or LOOK_AGAIN_S have passed.

        Raises PeersMissing when the others have had their time or one has given up, NoticeMet
        at a notice.
        """
        start = self._clock.monotonic()
        self._since = start if self._since is None else self._since
        while True:
            here = self._look()
            if len(here) >= self._spec.nodes:
                return True
            if self._claimed(attempt) or self._clock.monotonic() - start >= LOOK_AGAIN_S:
                return False
            if self._clock.monotonic() - self._since > PATIENCE * self._spec.node_lost_s:
                raise PeersMissing(self._missing(here))
            if self._interrupted():
                self.leave()
                raise NoticeMet
            self._clock.sleep(max(POLL_S, 0.02 * self._spec.nodes))

    def leave(self) -> None:
        """Nobody need wait for this agent any more. Best effort: it would only be seen dead."""
        if self._beat:
            with suppress(StorageError):
                self._storage.delete(self._path())

    def last_words(self, reason: str, words: str) -> None:
        """Say why this agent left without a claim. Best effort: its own output says it too.

        Of a run whose directory is gone nothing is written: that would make it anew.
        """
        with suppress(StorageError):
            self._storage.get(layout.RESOLVED)
            self._put(reason, words)

    def _path(self) -> str:
        me = self._identity
        return layout.arrival(self._spec.submission, me.restart_count, self._token)

    def _put(self, reason: str = "", words: str = "") -> None:
        self._beat += 1
        me = self._identity
        record = ArrivalRecord(
            token=self._token,
            backend_id=me.backend_id,
            slot=me.slot,
            host=me.host,
            beat=self._beat,
            reason=reason,
            words=words,
            time=iso(self._clock.now()),
        )
        attempts.put_arrival(self._storage, self._spec.submission, me.restart_count, record)

    def _look(self) -> dict[str, ArrivalRecord]:
        """Say that we are there; who else is, by node number or else by token."""
        self._put()
        now, here = self._clock.monotonic(), {}
        for found in self._of_this_job():
            if found.reason and found.token != self._token:
                where = found.host if found.slot is None else f"node {found.slot} ({found.host})"
                raise PeersMissing(f"{where} has left: {found.words}")
            if found.token == self._token or self._alive(found, now):
                here[found.token if found.slot is None else str(found.slot)] = found
        return here

    def _of_this_job(self) -> list[ArrivalRecord]:
        """A job that was taken back may have left arrivals of the same start."""
        me = self._identity
        found = attempts.read_arrivals(self._storage, self._spec.submission, me.restart_count)
        return [r for r in found if r.backend_id == me.backend_id]

    def _alive(self, other: ArrivalRecord, now: float) -> bool:
        """One seen for the first time may have died long ago: it must be seen to change."""
        beat, changed = self._seen.get(other.token, (other.beat, float("-inf")))
        if beat != other.beat:
            changed = now
        self._seen[other.token] = (other.beat, changed)
        return now - changed <= ALIVE_S

    def _claimed(self, attempt: int) -> bool:
        try:
            self._storage.get(layout.claim(attempt))
        except NotFound:
            return False
        return True

    def _missing(self, here: dict[str, ArrivalRecord]) -> str:
        spec = self._spec
        count = spec.nodes - len(here)
        waited = f"{PATIENCE * spec.node_lost_s:.0f} s"
        which = ""
        if self._identity.slot is not None:
            absent = [str(k) for k in range(spec.nodes) if str(k) not in here]
            which = f": node {', '.join(absent)}"
            given = os.environ.get("SLURM_JOB_NODELIST")
            which += f" of {given}" if given else ""
        hosts = ", ".join(sorted(r.host for r in here.values()))
        return f"{count} of {spec.nodes} nodes did not come within {waited}{which}; here: {hosts}"


def last_words(came: Sequence[ArrivalRecord]) -> ArrivalRecord | None:
    """What the agents of a start that claimed nothing said last, if any said something."""
    return max((r for r in came if r.reason), key=lambda r: r.time, default=None)
