"""Submissions, claims, slots, stop requests and verdicts of a run: create-only objects.

A damaged one is never believed. Readers pass over it where others tell enough, and its name
still counts: it says that a number is taken, a slot held, a stop wanted, a node at its end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from orchestrator.contract import layout
from orchestrator.contract.records import (
    ArrivalRecord,
    ClaimRecord,
    SalvageRecord,
    SlotRecord,
    StopRecord,
    SubmissionId,
    SubmissionRecord,
    VerdictRecord,
)
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartPoint
from orchestrator.contract.summary import RunSummary
from orchestrator.errors import CheckpointError, RecordDamaged
from orchestrator.run_directory import records
from orchestrator.storage.parallel import get_all
from orchestrator.storage.protocol import Created, NotFound, Storage

R = TypeVar("R")
UNREADABLE = "unreadable"
"""Reason of a stop request whose own cannot be read."""


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """All records of a kind; `damaged` are the paths of those that cannot be believed."""

    records: list[R]
    damaged: tuple[str, ...]

    def damaged_numbers(self) -> list[int]:
        """The numbers that their names carry."""
        return [n for n in map(layout.number_of, self.damaged) if n is not None]


def _read_all(storage: Storage, cls: type[R], folder: str, pattern: str) -> Found[R]:
    found, damaged = [], []
    paths = [e.path for e in storage.list(folder) if re.search(pattern, e.path)]
    for path, data in zip(paths, get_all(storage, paths), strict=True):
        if data is None:
            continue
        try:
            found.append(records.decode(cls, data, path))
        except RecordDamaged:
            damaged.append(path)
    return Found(found, tuple(damaged))


def _create(storage: Storage, path: str, record: R) -> R | None:
    """None if created, else who holds it. Raises RecordDamaged where that cannot be read."""
    outcome = storage.create(path, records.encode(record))
    if isinstance(outcome, Created):
        return None
    return records.decode(type(record), outcome.by, path)


def read_job(storage: Storage, path: str = layout.RESOLVED) -> ResolvedJob:
    """A resolved job. Raises NotFound, or RecordDamaged."""
    try:
        return records.read(storage, ResolvedJob, path)
    except RecordDamaged as fault:
        raise RecordDamaged(
            fault.message, hint="restore it from a backup: the checkpoints are not affected"
        ) from None


def write_job(storage: Storage, job: ResolvedJob, path: str = layout.RESOLVED) -> None:
    """Store a resolved job."""
    storage.put(path, records.encode_pretty(job))


def create_submission(storage: Storage, record: SubmissionRecord) -> SubmissionRecord | None:
    """Create `submissions/<m>.json`; returns the other one if the number is taken."""
    return _create(storage, layout.submission(record.number), record)


def all_submissions(storage: Storage) -> Found[SubmissionRecord]:
    """All submissions, by number."""
    found = _read_all(storage, SubmissionRecord, layout.SUBMISSIONS, r"/\d+\.json$")
    return replace(found, records=sorted(found.records, key=lambda r: r.number))


def read_submissions(storage: Storage) -> list[SubmissionRecord]:
    """Those submissions that can be read, by number."""
    return all_submissions(storage).records


def newest_number(found: Found[SubmissionRecord]) -> int:
    """Of the newest submission, whether it can be read or not; 0 if there is none."""
    return max([s.number for s in found.records] + found.damaged_numbers(), default=0)


def read_submission(storage: Storage, number: int) -> SubmissionRecord | None:
    """Submission `number`; None if there is none. Raises RecordDamaged."""
    try:
        return records.read(storage, SubmissionRecord, layout.submission(number))
    except NotFound:
        return None


def record_backend_id(storage: Storage, record: SubmissionId) -> None:
    """Note how the backend calls a submission; the first note that can be read stays, but for
    the uid of a job that was given back and made anew.
    """
    path = layout.submission_id(record.number)
    try:
        known = _create(storage, path, record)
    except RecordDamaged:
        storage.put(path, records.encode(record))
        return
    if known is not None and known.backend_id == record.backend_id and known.uid != record.uid:
        storage.put(path, records.encode(record))


def read_submission_id(storage: Storage, number: int) -> SubmissionId | None:
    """How the backend calls submission `number`; None if it never answered. RecordDamaged."""
    try:
        return records.read(storage, SubmissionId, layout.submission_id(number))
    except NotFound:
        return None


def put_arrival(storage: Storage, number: int, restart_count: int, record: ArrivalRecord) -> None:
    """Say that an agent is there, or why it left."""
    path = layout.arrival(number, restart_count, record.token)
    storage.put(path, records.encode(record))


def read_arrivals(storage: Storage, number: int, restart_count: int) -> list[ArrivalRecord]:
    """The agents that came with one start of a submission, and what they say."""
    folder = layout.arrivals(number, restart_count)
    return _read_all(storage, ArrivalRecord, folder, r"/[^/]+\.json$").records


def create_claim(storage: Storage, record: ClaimRecord) -> ClaimRecord | None:
    """Create `attempts/<n>.json`; returns the other claim if the number is taken."""
    return _create(storage, layout.claim(record.attempt), record)


def all_claims(storage: Storage) -> Found[ClaimRecord]:
    """All claims, by attempt."""
    found = _read_all(storage, ClaimRecord, layout.ATTEMPTS, r"/\d+\.json$")
    return replace(found, records=sorted(found.records, key=lambda r: r.attempt))


def read_claims(storage: Storage) -> list[ClaimRecord]:
    """Those claims that can be read, by attempt."""
    return all_claims(storage).records


def attempt_numbers(storage: Storage) -> list[int]:
    """Of all attempts that were claimed, by the names of the claims alone."""
    named = (e.path for e in storage.list(layout.ATTEMPTS))
    return sorted(n for path in named if (n := layout.number_of(path)) and path == layout.claim(n))


def create_slot(storage: Storage, record: SlotRecord) -> SlotRecord | None:
    """Create `attempts/<n>/nodes/<k>.json`; returns the holder if it is taken."""
    return _create(storage, layout.slot(record.attempt, record.slot), record)


def read_start(storage: Storage, attempt: int) -> StartPoint | None:
    """What the attempt started from; None if it chose nothing yet. Raises RecordDamaged."""
    try:
        return records.read(storage, StartPoint, layout.start_point(attempt))
    except NotFound:
        return None


def write_start(storage: Storage, attempt: int, point: StartPoint) -> None:
    """Say what the attempt starts from."""
    storage.put(layout.start_point(attempt), records.encode(point))


def read_summary(storage: Storage) -> RunSummary | None:
    """summary.json, or None if there is none that can be read: its helper writes it anew."""
    try:
        return records.read(storage, RunSummary, layout.SUMMARY)
    except (NotFound, RecordDamaged):
        return None


def write_salvage(storage: Storage, record: SalvageRecord) -> None:
    """Say that an attempt's salvaged adapter is complete."""
    storage.put(layout.salvage_note(record.attempt), records.encode(record))


def read_salvages(storage: Storage) -> list[SalvageRecord]:
    """Salvaged adapters, by attempt; a damaged note is passed over."""
    found = []
    for number in attempt_numbers(storage):
        path = layout.salvage_note(number)
        try:
            found.append(records.read(storage, SalvageRecord, path))
        except (NotFound, CheckpointError):
            continue
    return found


def read_slots(storage: Storage, attempt: int) -> list[SlotRecord]:
    """Slots claimed so far, by number. One that cannot be read is held, by whom is blank."""
    found = _read_all(storage, SlotRecord, layout.slots(attempt), _SLOT.pattern)
    blank = [
        SlotRecord(
            attempt=attempt,
            slot=number,
            token="",
            host="",
            address="",
            port=0,
            pid=0,
            backend_id="",
        )
        for number in found.damaged_numbers()
    ]
    return sorted([*found.records, *blank], key=lambda r: r.slot)


def create_stop(storage: Storage, record: StopRecord) -> StopRecord:
    """Create a stop request under the next free index of its slot; returns it as stored."""
    for index in range(record.index, record.index + 10_000):
        stop = replace(record, index=index)
        path = layout.stop(record.attempt, record.slot, index)
        if isinstance(storage.create(path, records.encode(stop)), Created):
            return stop
    raise CheckpointError(f"attempt {record.attempt} has more than 10000 stop requests")


def read_stops(storage: Storage, attempt: int) -> list[StopRecord]:
    """Stop requests of an attempt. One that cannot be read is one: `seconds_left` without end."""
    found = _read_all(storage, StopRecord, layout.stops(attempt), _STOP.pattern)
    return found.records + [_unreadable_stop(attempt, path) for path in found.damaged]


_STOP = re.compile(r"/(\d+)-(\d+)\.json$")


def _unreadable_stop(attempt: int, path: str) -> StopRecord:
    named = _STOP.search(path)
    assert named is not None, "only such names are read"
    return StopRecord(
        attempt=attempt,
        slot=int(named[1]),
        index=int(named[2]),
        reason=UNREADABLE,
        seconds_left=math.inf,
    )


def write_verdict(storage: Storage, record: VerdictRecord) -> VerdictRecord:
    """Write a slot's verdict once; a repeated try returns the first that can be read."""
    path = layout.verdict(record.attempt, record.slot)
    try:
        other = _create(storage, path, record)
    except RecordDamaged:
        storage.put(path, records.encode(record))
        return record
    return record if other is None else other


def all_verdicts(storage: Storage, attempt: int) -> Found[VerdictRecord]:
    """Verdicts of an attempt's slots."""
    folder = layout.attempt_dir(attempt)
    return _read_all(storage, VerdictRecord, folder, _VERDICT.pattern)


def read_verdicts(storage: Storage, attempt: int) -> list[VerdictRecord]:
    """Those that can be read; a slot whose own cannot counts as killed."""
    return all_verdicts(storage, attempt).records


def damaged_of(storage: Storage, attempt: int) -> list[str]:
    """Paths of an attempt's own records that are not what was written."""
    found: list[str] = []
    kinds = (
        (SlotRecord, layout.slots(attempt), _SLOT),
        (StopRecord, layout.stops(attempt), _STOP),
        (VerdictRecord, layout.attempt_dir(attempt), _VERDICT),
        (StartPoint, layout.attempt_dir(attempt), _START),
    )
    for cls, folder, names in kinds:
        found += _read_all(storage, cls, folder, names.pattern).damaged
    return found


_SLOT = re.compile(r"/\d+\.json$")
_START = re.compile(r"/start\.json$")
_VERDICT = re.compile(r"/verdict-(\d+)\.json$")


def has_ended(storage: Storage, attempt: int) -> bool:
    """True if every slot that was claimed in the attempt has left its verdict, readable or not."""
    slots = {s.slot for s in read_slots(storage, attempt)}
    found = all_verdicts(storage, attempt)
    unread = {int(named[1]) for path in found.damaged if (named := _VERDICT.search(path))}
    return bool(slots) and slots <= {v.slot for v in found.records} | unread


def has_tombstone(storage: Storage) -> bool:
    """True once the run is cancelled."""
    return _exists(storage, layout.TOMBSTONE)


def _exists(storage: Storage, path: str) -> bool:
    try:
        storage.get(path)
    except NotFound:
        return False
    return True
