"""What a helper reads at the start of its attempt."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.contract.jsonio import MalformedJson, from_json, loads
from orchestrator.contract.records import SubmissionRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import StorageError, UserError
from orchestrator.storage import attempts
from orchestrator.storage.protocol import NotFound, Storage

POLL_S = 0.2


def job(storage: Storage, path: str) -> ResolvedJob:
    """The resolved job of the attempt. Raises UserError if it is missing or damaged."""
    try:
        return from_json(ResolvedJob, loads(storage.get(path)))
    except NotFound:
        raise UserError(f"{path} is missing in {storage.uri}") from None
    except MalformedJson as fault:
        raise UserError(f"{path} is damaged: {fault}") from None


def submission(storage: Storage, number: int) -> SubmissionRecord:
    """The submission that the attempt belongs to. Raises UserError if it is missing."""
    for record in attempts.read_submissions(storage):
        if record.number == number:
            return record
    raise UserError(f"submission {number} is missing in the run directory")


def start_point(storage: Storage, clock: Clock, path: str, seconds: float) -> StartPoint:
    """What node 0 has chosen, waited for so long. Raises StorageError."""
    deadline = clock.monotonic() + seconds
    while clock.monotonic() < deadline:
        try:
            return from_json(StartPoint, loads(storage.get(path)))
        except NotFound:
            clock.sleep(POLL_S)
    raise StorageError("node 0 did not choose what to start from")
