"""Submissions, claims, slots, stop requests and verdicts of a run: create-only objects."""

from __future__ import annotations

import re
from typing import TypeVar

from orchestrator.contract import layout
from orchestrator.contract.jsonio import (
    MalformedJson,
    NewerSchema,
    canonical,
    from_json,
    loads,
    to_json,
)
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
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import CheckpointError, NewerVersion
from orchestrator.storage.protocol import Created, NotFound, Storage

R = TypeVar("R")


def _decode(cls: type[R], data: bytes, path: str) -> R:
    try:
        return from_json(cls, loads(data))
    except NewerSchema as fault:
        raise NewerVersion(f"{path} was {fault}") from None
    except MalformedJson as fault:
        raise CheckpointError(f"{path} is damaged: {fault}") from None


def _read_all(storage: Storage, cls: type[R], folder: str, pattern: str) -> list[R]:
    found = []
    for entry in storage.list(folder):
        if not re.search(pattern, entry.path):
            continue
        try:
            found.append(_decode(cls, storage.get(entry.path), entry.path))
        except NotFound:
            continue
    return found


def _create(storage: Storage, path: str, record: R) -> R | None:
    """None if created, else who holds it."""
    outcome = storage.create(path, canonical(to_json(record)))
    if isinstance(outcome, Created):
        return None
    return _decode(type(record), outcome.by, path)


def create_submission(storage: Storage, record: SubmissionRecord) -> SubmissionRecord | None:
    """Create `submissions/<m>.json`; returns the other one if the number is taken."""
    return _create(storage, layout.submission(record.number), record)


def read_submissions(storage: Storage) -> list[SubmissionRecord]:
    """All submissions, by number."""
    found = _read_all(storage, SubmissionRecord, layout.SUBMISSIONS, r"/\d+\.json$")
    return sorted(found, key=lambda r: r.number)


def record_backend_id(storage: Storage, record: SubmissionId) -> None:
    """Note how the backend calls a submission; the first note stays, but for the uid of a job
    that was given back and made anew.
    """
    path = layout.submission_id(record.number)
    known = _create(storage, path, record)
    if known is not None and known.backend_id == record.backend_id and known.uid != record.uid:
        storage.put(path, canonical(to_json(record)))


def read_submission_id(storage: Storage, number: int) -> SubmissionId | None:
    """How the backend calls submission `number`; None if it never answered."""
    path = layout.submission_id(number)
    try:
        return _decode(SubmissionId, storage.get(path), path)
    except NotFound:
        return None


def put_arrival(storage: Storage, number: int, restart_count: int, record: ArrivalRecord) -> None:
    """Say that an agent is there, or why it left."""
    path = layout.arrival(number, restart_count, record.token)
    storage.put(path, canonical(to_json(record)))


def read_arrivals(storage: Storage, number: int, restart_count: int) -> list[ArrivalRecord]:
    """The agents that came with one start of a submission, and what they say."""
    return _read_all(
        storage, ArrivalRecord, layout.arrivals(number, restart_count), r"/[^/]+\.json$"
    )


def create_claim(storage: Storage, record: ClaimRecord) -> ClaimRecord | None:
    """Create `attempts/<n>.json`; returns the other claim if the number is taken."""
    return _create(storage, layout.claim(record.attempt), record)


def read_claims(storage: Storage) -> list[ClaimRecord]:
    """All claims, by attempt."""
    found = _read_all(storage, ClaimRecord, layout.ATTEMPTS, r"/\d+\.json$")
    return sorted(found, key=lambda r: r.attempt)


def create_slot(storage: Storage, record: SlotRecord) -> SlotRecord | None:
    """Create `attempts/<n>/nodes/<k>.json`; returns the holder if it is taken."""
    return _create(storage, layout.slot(record.attempt, record.slot), record)


def read_start(storage: Storage, attempt: int) -> StartPoint | None:
    """What the attempt started from; None if it chose nothing yet."""
    path = layout.start_point(attempt)
    try:
        return _decode(StartPoint, storage.get(path), path)
    except NotFound:
        return None


def write_salvage(storage: Storage, record: SalvageRecord) -> None:
    """Say that an attempt's salvaged adapter is complete."""
    storage.put(layout.salvage_note(record.attempt), canonical(to_json(record)))


def read_salvages(storage: Storage) -> list[SalvageRecord]:
    """Salvaged adapters, by attempt; a damaged note is passed over."""
    found = []
    for claim in read_claims(storage):
        path = layout.salvage_note(claim.attempt)
        try:
            found.append(_decode(SalvageRecord, storage.get(path), path))
        except (NotFound, CheckpointError):
            continue
    return found


def read_slots(storage: Storage, attempt: int) -> list[SlotRecord]:
    """Slots claimed so far, by number."""
    found = _read_all(storage, SlotRecord, layout.slots(attempt), r"/\d+\.json$")
    return sorted(found, key=lambda r: r.slot)


def create_stop(storage: Storage, record: StopRecord) -> StopRecord:
    """Create a stop request under the next free index of its slot; returns it as stored."""
    for index in range(record.index, record.index + 10_000):
        stop = StopRecord(
            attempt=record.attempt,
            slot=record.slot,
            index=index,
            reason=record.reason,
            seconds_left=record.seconds_left,
            rank=record.rank,
            time=record.time,
        )
        path = layout.stop(record.attempt, record.slot, index)
        if _create(storage, path, stop) is None:
            return stop
    raise CheckpointError(f"attempt {record.attempt} has more than 10000 stop requests")


def read_stops(storage: Storage, attempt: int) -> list[StopRecord]:
    """Stop requests of an attempt."""
    return _read_all(storage, StopRecord, layout.stops(attempt), r"/\d+-\d+\.json$")


def write_verdict(storage: Storage, record: VerdictRecord) -> VerdictRecord:
    """Write a slot's verdict once; a repeated try returns the first."""
    other = _create(storage, layout.verdict(record.attempt, record.slot), record)
    return record if other is None else other


def read_verdicts(storage: Storage, attempt: int) -> list[VerdictRecord]:
    """Verdicts of an attempt's slots."""
    folder = layout.attempt_dir(attempt)
    return _read_all(storage, VerdictRecord, folder, r"/verdict-\d+\.json$")


def has_tombstone(storage: Storage) -> bool:
    """True once the run is cancelled."""
    return _exists(storage, layout.TOMBSTONE)


def _exists(storage: Storage, path: str) -> bool:
    try:
        storage.get(path)
    except NotFound:
        return False
    return True
