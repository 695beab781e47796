"""The run's log: the one authority on what is committed, given up, bad, and done.

Records `log/<seq>.json` are created, never replaced or removed. A writer tries only the
number after the last record it has read, so that it cannot miss a fence; an attempt with
a higher number that has fenced makes every lower one a NotOwner.

What was read is kept, and read again only where it no longer fits what is listed. `log.json` is a
copy that spares a new reader most requests: it is believed only where its chain of hashes ends in
the very record that stands in the log, and any reader may do without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import MalformedJson, NewerSchema, loads, to_json
from orchestrator.contract.records import LogRecord, RecordKind, decode_record, encode_record
from orchestrator.errors import LogDamaged, NewerVersion, NotOwner
from orchestrator.storage.hashing import sha256
from orchestrator.storage.parallel import get_all
from orchestrator.storage.protocol import Created, Damaged, NotFound, Storage, list_after

COPY_EVERY = 100
"""Records that the copy may lack before it is written anew."""
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
        self._copied = 0
        """Records that the copy holds, as far as we know."""
        self._ahead: dict[int, bytes] = {}
        """Fetched side by side, not taken yet."""
        self._forget()

    def _forget(self) -> None:
        self._records: list[LogRecord] = []
        self._lines: list[bytes] = []
        """The same as they are stored."""
        self._unreadable: list[int] = []
        self._next = 1
        self._prev = ""

    def read(self) -> LogView:
        """Everything up to the newest record. Damaged records are passed over and named.

        Raises NewerVersion if a newer version has written to the log.
        """
        if self._next == 1:
            self._take_copy()
        kept = self._next > 1
        if not self._catch_up() and kept:
            self._forget()
            self._catch_up()
        return LogView(tuple(self._records), tuple(self._unreadable))

    def keep_copy(self) -> None:
        """Write the copy, if it lacks enough to be worth it. Raises StorageError."""
        if self._unreadable or len(self._lines) < self._copied + COPY_EVERY:
            return
        self._copied = len(self._lines)
        self._storage.put(layout.LOG_COPY, b"\n".join(self._lines))

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
            if self._has_news():
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
            data = encode_record(record)
            outcome = self._storage.create(layout.log_record(seq), data)
            if isinstance(outcome, Created):
                self._take(seq, data)
                return record
            self._take(seq, outcome.by)

    def _check_may_write(self, attempt: int) -> None:
        if self._unreadable:
            raise _damaged(self._unreadable[-1])
        fence = max((r.attempt for r in self._records if r.kind == "fence"), default=0)
        if fence > attempt:
            raise NotOwner(f"attempt {attempt} has been replaced by attempt {fence}")

    def _has_news(self) -> bool:
        """Whether a writer must read before it tries the next number. Raises LogDamaged if the
        last record that it knows has gone.
        """
        if self._next == 1:
            return True
        listed = self._listed()
        if not self._stands(listed):
            raise _damaged(self._next - 1)
        return bool(listed) and listed[-1] >= self._next

    def _catch_up(self) -> bool:
        """Take what is new; False if something does not fit."""
        known, listed = len(self._unreadable), self._listed()
        if not self._stands(listed):
            return False
        news = [seq for seq in listed if seq >= self._next]
        found = get_all(self._storage, [layout.log_record(seq) for seq in news])
        self._ahead = {s: data for s, data in zip(news, found, strict=True) if data is not None}
        self._absorb_all()
        for seq in news:
            if seq < self._next:
                continue
            if seq - self._next > MAX_GAP and not self._is_record(seq):
                break
            self._unreadable.extend(range(max(self._next, seq - MAX_GAP), seq))
            self._next = seq
            self._absorb_all()
        self._ahead = {}
        return len(self._unreadable) == known

    def _absorb_all(self) -> None:
        while self._absorb(self._next):
            pass

    def _listed(self) -> list[int]:
        """Numbers from the last known one on: evidence that a record has gone, never a place to
        write to.
        """
        last = self._next - 1
        entries = list_after(self._storage, layout.LOG, layout.log_record(last - 1))
        numbers = [(layout.number_of(e.path), e.path) for e in entries]
        return sorted(n for n, path in numbers if n and n >= last and path == layout.log_record(n))

    def _stands(self, listed: Sequence[int]) -> bool:
        """True if the last known record is still there; a listing alone may miss it."""
        last = self._next - 1
        if last == 0 or last in listed:
            return True
        return get_all(self._storage, [layout.log_record(last)]) != [None]

    def _take_copy(self) -> None:
        """Begin with what the copy holds, if that is what the log holds."""
        try:
            lines = self._storage.get(layout.LOG_COPY).split(b"\n")
            for seq, data in enumerate(lines, 1):
                self._take(seq, data)
            whole = not self._unreadable
            if whole and self._storage.get(layout.log_record(len(lines))) == lines[-1]:
                self._copied = len(lines)
                return
        except (NotFound, Damaged):
            self._forget()
            return
        self._forget()

    def _is_record(self, seq: int) -> bool:
        try:
            decode_record(loads(self._storage.get(layout.log_record(seq))), seq)
        except (MalformedJson, NotFound):
            return False
        return True

    def _absorb(self, seq: int) -> bool:
        try:
            data = self._ahead.pop(seq, None) or self._storage.get(layout.log_record(seq))
        except NotFound:
            return False
        self._take(seq, data)
        return True

    def _take(self, seq: int, data: bytes) -> None:
        try:
            self._records.append(self._decode(data, seq))
        except NewerSchema as fault:
            raise NewerVersion(f"record {seq} of the run's log was {fault}") from None
        except MalformedJson:
            self._unreadable.append(seq)
        self._lines.append(data)
        self._prev = sha256(data)
        self._next = seq + 1

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
