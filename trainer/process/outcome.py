"""How a rank's work can end: exceptions that leave the training loop, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.contract.codes import CRASH, ExitCode
from orchestrator.errors import (
    ContractRefused,
    DataFault,
    LogDamaged,
    NotOwner,
    QvlError,
    StorageError,
    UserError,
)
from orchestrator.storage.protocol import NotFound


@dataclass(frozen=True, slots=True)
class Ending:
    """What a rank tells its agent before it leaves."""

    code: int
    reason: str
    """One short word: done, preempted, oom, contract, base-changed, data, user, not-owner, storage,
    crash.
    """
    message: str = ""


class Leave(Exception):
    """Leaves the training loop from wherever it stands, with a verdict."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message or ending.reason)
        self.ending = ending


class BaseChanged(ContractRefused):
    """The frozen base model is not what it was when the attempt started."""


def preempted(*, committed: bool, message: str) -> Leave:
    """The way out after an agreed stop."""
    code = ExitCode.PREEMPTED if committed else ExitCode.PREEMPTED_NOTHING_NEW
    return Leave(Ending(code, "preempted", message))


_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (BaseChanged, "base-changed"),
    (ContractRefused, "contract"),
    (LogDamaged, "log-damaged"),
    (DataFault, "data"),
    (UserError, "user"),
)
"""What asks for a person, the narrower class first, and the word for it."""


def ending_of(fault: BaseException, *, noticed: bool) -> Ending:
    """The verdict of a rank that ended by `fault`; `noticed`: a stop request is in force."""
    text = str(fault).strip() or type(fault).__name__
    if isinstance(fault, Leave):
        return fault.ending
    if isinstance(fault, NotOwner):
        return Ending(ExitCode.NOT_OWNER, "not-owner", text)
    refused = next((word for cls, word in _REFUSALS if isinstance(fault, cls)), None)
    if refused is not None:
        return Ending(ExitCode.REFUSED, refused, text)
    if noticed:
        return Ending(ExitCode.PREEMPTED_NOTHING_NEW, "preempted", f"left after the notice: {text}")
    if is_out_of_memory(fault):
        return Ending(ExitCode.OUT_OF_MEMORY, "oom", text)
    if isinstance(fault, StorageError) and not isinstance(fault, NotFound):
        return Ending(ExitCode.STORAGE, "storage", text)
    head = "" if isinstance(fault, QvlError) else f"{type(fault).__name__}: "
    return Ending(CRASH, "crash", head + text)


def is_out_of_memory(fault: BaseException) -> bool:
    """True for every way in which Python, CUDA and the CPU allocator say it."""
    if isinstance(fault, MemoryError):
        return True
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(fault).__mro__):
        return True
    text = str(fault).lower()
    return isinstance(fault, RuntimeError) and (
        "cuda error: out of memory" in text
        or "cuda out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
