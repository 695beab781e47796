"""The lease on a run: numbered, create-only. It saves double work; safety does not need it."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress

from orchestrator.agent.identity import boot_id, start_ticks
from orchestrator.clock import Clock, iso, parse_iso
from orchestrator.contract import layout
from orchestrator.contract.records import LeaseRecord
from orchestrator.errors import RecordDamaged, StorageError
from orchestrator.run_directory import records
from orchestrator.storage.protocol import Created, NotFound, Storage

TTL_S = 600.0
"""How long a lease lasts; a holder of this host that has died is seen at once."""
FLEET_TTL_S = 60.0
"""The same for a controller of all runs, which may be started anew on another host."""


def newest(storage: Storage) -> LeaseRecord | None:
    """The lease in force, expired or not; None if nobody ever held one."""
    return _newest(storage)[0]


def _newest(storage: Storage) -> tuple[LeaseRecord | None, int]:
    """The same, and the highest number that is taken: by it, or by one that cannot be read."""
    found = (layout.number_of(e.path) for e in storage.list(layout.LEASE))
    numbers = sorted(n for n in found if n is not None)
    for number in reversed(numbers):
        with suppress(NotFound, RecordDamaged):
            return records.read(storage, LeaseRecord, layout.lease(number)), numbers[-1]
    return None, numbers[-1] if numbers else 0


def is_live(record: LeaseRecord | None, now: float) -> bool:
    """True while its holder may still be at work."""
    if record is None or record.released or parse_iso(record.expires_at) < now:
        return False
    if record.host != socket.gethostname():
        return True
    return record.boot_id == boot_id() and start_ticks(record.pid) == record.start_ticks


class Lease:
    """Takes, renews and releases the lease of one run. Its holder keeps it for as long as it looks
    after the run, through whatever fails: only so does it know its own lease again.

    lasting: the holder stays with the run; else it goes after one pass
    """

    def __init__(
        self, storage: Storage, clock: Clock, ttl_s: float = TTL_S, *, lasting: bool = True
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._ttl_s = ttl_s
        self._lasting = lasting
        self._owner = secrets.token_hex(16)
        self._seq = 0
        self._renewed = 0.0

    def acquire(self) -> bool:
        """True if the lease is ours now (also if it was already).

        Raises StorageError, NotFound for a run that is not there: nothing is created then.
        """
        current, last = _newest(self._storage)
        if current is None:
            self._storage.get(layout.RESOLVED)
        mine = current is not None and current.owner == self._owner and not current.released
        if mine and self._clock.monotonic() - self._renewed < self._ttl_s / 3:
            return True
        if not mine and is_live(current, self._clock.now()):
            return False
        return self._write(last + 1, released=False)

    def release(self) -> bool:
        """Let another controller take over at once; False if the storage does not take that: the
        lease then lapses by itself.
        """
        try:
            current, last = _newest(self._storage)
            if current is not None and current.owner == self._owner and not current.released:
                self._write(last + 1, released=True)
        except StorageError:
            return False
        return True

    def _write(self, seq: int, *, released: bool) -> bool:
        record = LeaseRecord(
            seq=seq,
            owner=self._owner,
            expires_at=iso(self._clock.now() + self._ttl_s),
            renewed_at=iso(self._clock.now()),
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=boot_id(),
            start_ticks=start_ticks(os.getpid()) or 0,
            released=released,
            lasting=self._lasting,
        )
        outcome = self._storage.create(layout.lease(seq), records.encode(record))
        if not isinstance(outcome, Created):
            return False
        self._renewed = self._clock.monotonic()
        self._storage.delete(layout.lease(seq - 2))
        return True
