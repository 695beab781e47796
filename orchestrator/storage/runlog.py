"""The run's log: the one authority on what is committed, given up, bad, and done.

Records `log/<seq>.json` are created, never replaced or removed. A writer tries only the
number after the last record it has read, so that it cannot miss a fence; an attempt with
a higher number that has fenced makes every lower one a NotOwner.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import MalformedJson, NewerSchema, loads, to_json
from orchestrator.contract.records import LogRecord, RecordKind, decode_record, encode_record
from orchestrator.errors import LogDamaged, NewerVersion, NotOwner
from orchestrator.storage.hashing import sha256
from orchestrator.storage.protocol import Created, NotFound, Storage

MAX_GAP = 1000
"""Missing records behind which only a record that is right in itself is still of this log."""


@dataclass(frozen=True, slots=True)
class LogView:
    """The log as read at one moment, oldest first; `unreadable` names damaged numbers."""

    records: tuple[LogRecord, ...] = ()
    unreadable: tuple[int, ...] = ()

    @property
    def last_seq(self) -> int:
        seqs = [r.seq for r in self.records[-1:]] + list(self.unreadable)
        return max(seqs, default=0)

    def fence(self) -> int:
        """Highest attempt that has fenced; 0 if none."""
        return max((r.attempt for r in self.records if r.kind == "fence"), default=0)

    def done(self) -> LogRecord | None:
        """The done record, if the run is finished."""
        return next((r for r in self.records if r.kind == "done"), None)

    def is_done(self) -> bool:
        return self.done() is not None


class RunLog:
    """Reads and extends the log of one run. Not for use by several threads at once."""

    def __init__(self, storage: Storage, clock: Clock | None = None) -> None:
        self._storage = storage
        self._clock = clock or SystemClock()
        self._records: list[LogRecord] = []
        self._unreadable: list[int] = []
        self._next = 1
        self._prev = ""

    def read(self) -> LogView:
        """Everything up to the newest record. Damaged records are passed over and named.

        Raises NewerVersion if a newer version has written to the log.
        """
        self._absorb_all()
        for seq in self._listed_beyond():
            self._absorb_all()
            if seq < self._next:
                continue
            if seq - self._next > MAX_GAP and not self._is_record(seq):
                break
            self._unreadable.extend(range(max(self._next, seq - MAX_GAP), seq))
            self._next = seq
            self._absorb_all()
        return LogView(tuple(self._records), tuple(self._unreadable))

    def make_durable(self, record: LogRecord) -> None:
        """Before a record is acknowledged that was only found: whoever created it may have
        died between making it visible and making it durable.
        """
        found = self._storage.create(layout.log_record(record.seq), encode_record(record))
        if not isinstance(found, Created):
            raise _damaged(record.seq)

    def append(
        self,
        kind: RecordKind,
        attempt: int,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
    ) -> LogRecord:
        """Append one record as `attempt`, durably.

        Raises NotOwner if a higher attempt has fenced, LogDamaged if the newest record
        cannot be read, StorageError if the storage fails. With the `token` of an earlier
        try whose reply was lost, that record is found and returned.
        """
        token = token or secrets.token_hex(16)
        while True:
            self.read()
            self._check_may_write(attempt)
            mine = next((r for r in self._records if r.token == token), None)
            if mine is not None:
                self.make_durable(mine)
                return mine
            seq = self._next
            record = LogRecord(
                seq=seq,
                kind=kind,
                attempt=attempt,
                token=token,
                prev=self._prev,
                time=iso(self._clock.now()),
                body=to_json(body or {}),
            )
            if isinstance(
                self._storage.create(layout.log_record(seq), encode_record(record)), Created
            ):
                self._absorb(seq)
                return record

    def _check_may_write(self, attempt: int) -> None:
        if self._unreadable:
            raise _damaged(self._unreadable[-1])
        fence = max((r.attempt for r in self._records if r.kind == "fence"), default=0)
        if fence > attempt:
            raise NotOwner(f"attempt {attempt} has been replaced by attempt {fence}")

    def _absorb_all(self) -> bool:
        first = self._next
        while self._absorb(self._next):
            pass
        return self._next > first

    def _listed_beyond(self) -> list[int]:
        """Only ever evidence that a record in between has gone, never a place to write to."""
        entries = self._storage.list(layout.LOG)
        numbers = [(layout.number_of(e.path), e.path) for e in entries]
        return sorted(
            n for n, path in numbers if n and n >= self._next and path == layout.log_record(n)
        )

    def _is_record(self, seq: int) -> bool:
        try:
            decode_record(loads(self._storage.get(layout.log_record(seq))), seq)
        except (MalformedJson, NotFound):
            return False
        return True

    def _absorb(self, seq: int) -> bool:
        try:
            data = self._storage.get(layout.log_record(seq))
        except NotFound:
            return False
        try:
            self._records.append(self._decode(data, seq))
        except NewerSchema as fault:
            raise NewerVersion(f"record {seq} of the run's log was {fault}") from None
        except MalformedJson:
            self._unreadable.append(seq)
        self._prev = sha256(data)
        self._next = seq + 1
        return True

    def _decode(self, data: bytes, seq: int) -> LogRecord:
        record = decode_record(loads(data), seq)
        if record.prev != self._prev and (seq - 1) not in self._unreadable:
            raise MalformedJson(f"log record {seq} does not follow record {seq - 1}")
        return record


def _damaged(seq: int) -> LogDamaged:
    return LogDamaged(
        f"record {seq} of the run's log cannot be read",
        hint="restore log/ of the run directory from a backup, or start a new run "
        "and `resume` it --from the path of a checkpoint",
    )
