"""How an attempt ends, as its helper tells it to the agent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.clock import Clock
from orchestrator.contract.codes import CRASH, PEERS, PREEMPTIONS, ExitCode
from orchestrator.contract.records import VerdictRecord
from orchestrator.contract.spec import TrainSpec
from orchestrator.domain.verdict import CANCEL, CANCELLED, attempt_verdict
from orchestrator.errors import (
    CheckpointError,
    ContractRefused,
    DataFault,
    NewerVersion,
    NotOwner,
    PeersMissing,
    QvlError,
    RecordDamaged,
    StorageError,
    UserError,
)
from orchestrator.helper import inputs
from orchestrator.helper.retention import Retention
from orchestrator.run_directory import attempts, evidence
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.protocol import NotFound, Storage

POLL_S = 0.2


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


def attempt_code(
    storage: Storage,
    log: RunLog,
    attempt: int,
    own: int,
    unstored: VerdictRecord | None = None,
) -> int:
    """Exit code of the attempt as a whole; this node's `own` if the storage is away.

    unstored: this node's verdict, where the storage did not take it
    """
    verdicts = [] if unstored is None else [unstored]
    try:
        return attempt_verdict(
            attempt,
            log.read().records,
            attempts.read_slots(storage, attempt),
            attempts.read_stops(storage, attempt),
            [*attempts.read_verdicts(storage, attempt), *verdicts],
        ).code
    except (StorageError, CheckpointError):
        return own


def is_done(log: RunLog) -> bool:
    """True if the run is known to be finished."""
    try:
        return log.read().is_done()
    except (StorageError, CheckpointError):
        return False


def told(record: VerdictRecord) -> dict[str, Any]:
    """What the event of a verdict says."""
    return {
        "code": record.code,
        "reason": record.reason,
        "message": record.message,
        "notice_to_exit_s": record.notice_to_exit_s,
    }


def write_verdict(
    storage: Storage, record: VerdictRecord, sweep: Callable[[], None] | None
) -> None:
    """Store a verdict; once more after `sweep`, which frees the room of saves that the end of the
    ranks has cut off.
    """
    try:
        attempts.write_verdict(storage, record)
    except StorageError:
        if sweep is None:
            raise
        sweep()
        attempts.write_verdict(storage, record)


def sweep(storage: Storage, retention: Retention, attempt: int, nodes: int) -> None:
    """Free what failed saves have left, once no rank of any node can commit it any more."""
    with suppress(StorageError, CheckpointError):
        if nodes == 1 or attempts.has_ended(storage, attempt):
            retention.sweep_ended()


def notice(storage: Storage, signal: str | None) -> str | None:
    """A cancel reaches the agent as a signal like any other: the tombstone tells them apart."""
    if signal is None:
        return None
    try:
        return CANCEL if attempts.has_tombstone(storage) else signal
    except StorageError:
        return signal


def starts_again(
    storage: Storage, log: RunLog, spec: TrainSpec, unstored: VerdictRecord | None, code: int
) -> bool:
    """Whether `decide` would start this job again at once, so that the scheduler may.

    unstored: this node's verdict, where the storage did not take it. A preemption is known here
    only then, and the job's next start, which the storage may refuse, is the best word of it.
    """
    if unstored is not None:
        served = unstored.notice not in (None, CANCEL) and unstored.cause != CANCELLED
        return served and code in PREEMPTIONS
    try:
        job = inputs.job(storage, spec.resolved)
        return evidence.starts_again(storage, log, job, spec.submission)
    except QvlError:
        return False


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
    if isinstance(fault, DataFault):
        return ExitCode.REFUSED, "data"
    if isinstance(fault, UserError):
        return ExitCode.REFUSED, "user"
    if isinstance(fault, PeersMissing):
        return CRASH, PEERS
    # A permission that is denied does not come back by itself: such starts are counted.
    closed = isinstance(fault.__cause__, PermissionError)
    if closed or isinstance(fault, NotFound) or not isinstance(fault, StorageError):
        return CRASH, "storage"
    return ExitCode.STORAGE, "storage"
