"""What a helper reads at the start of its attempt."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.contract.records import SubmissionRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import RecordDamaged, StorageError, UserError
from orchestrator.run_directory import attempts
from orchestrator.storage.protocol import NotFound, Storage

POLL_S = 0.2


def job(storage: Storage, path: str) -> ResolvedJob:
    """The resolved job of the attempt. Raises UserError if it is missing, RecordDamaged."""
    try:
        return attempts.read_job(storage, path)
    except NotFound:
        raise UserError(f"{path} is missing in {storage.uri}") from None


def submission(storage: Storage, number: int) -> SubmissionRecord:
    """The submission that the attempt belongs to. UserError if it is missing, RecordDamaged."""
    record = attempts.read_submission(storage, number)
    if record is None:
        raise UserError(f"submission {number} is missing in the run directory")
    return record


def start_point(storage: Storage, clock: Clock, attempt: int, seconds: float) -> StartPoint:
    """What node 0 has chosen, waited for so long. Raises StorageError."""
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline:
        try:
            point = attempts.read_start(storage, attempt)
        except RecordDamaged as fault:
            # The next attempt has one of its own: no reason to hold the run.
            raise StorageError(fault.message) from None
        if point is not None:
            return point
        clock.sleep(POLL_S)
    raise StorageError("node 0 did not choose what to start from")
