"""How an attempt ends, as its helper tells it to the agent."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.domain.verdict import attempt_verdict
from orchestrator.errors import (
    CheckpointError,
    ContractRefused,
    NewerVersion,
    NotOwner,
    PeersMissing,
    QvlError,
    RecordDamaged,
    StorageError,
    UserError,
)
from orchestrator.storage import attempts
from orchestrator.storage.protocol import Storage
from orchestrator.storage.runlog import RunLog

POLL_S = 0.2
PEERS = "peers"
"""Reason of an agent that left because others of its job did not come."""


def await_others(storage: Storage, clock: Clock, attempt: int, seconds: float) -> None:
    """Wait for the verdicts of the other slots: theirs decide about the attempt too."""
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        try:
            if attempts.has_ended(storage, attempt):
                return
        except (StorageError, CheckpointError):
            return
        clock.sleep(POLL_S)


def attempt_code(storage: Storage, log: RunLog, attempt: int, own: int) -> int:
    """Exit code of the attempt as a whole; this node's `own` if the storage is away."""
    try:
        return attempt_verdict(
            attempt,
            log.read().records,
            attempts.read_slots(storage, attempt),
            attempts.read_stops(storage, attempt),
            attempts.read_verdicts(storage, attempt),
        ).code
    except (StorageError, CheckpointError):
        return own


def refusal_code(fault: QvlError) -> tuple[int, str]:
    """Exit code and reason for a helper that cannot start its attempt."""
    if isinstance(fault, NotOwner):
        return ExitCode.NOT_OWNER, "not-owner"
    if isinstance(fault, ContractRefused):
        return ExitCode.REFUSED, "contract"
    if isinstance(fault, RecordDamaged):
        return ExitCode.REFUSED, "damaged"
    if isinstance(fault, CheckpointError):
        return ExitCode.REFUSED, "checkpoint"
    if isinstance(fault, NewerVersion):
        return ExitCode.REFUSED, "version"
    if isinstance(fault, UserError):
        return ExitCode.REFUSED, "user"
    return CRASH, PEERS if isinstance(fault, PeersMissing) else "storage"
