"""Which exit code an exception stands for, before and after a notice."""

from __future__ import annotations

import pytest

from orchestrator.errors import ContractRefused, LogDamaged, NotOwner, StorageError, UserError
from orchestrator.storage.protocol import NotFound
from trainer.process.outcome import BaseChanged, ending_of, is_out_of_memory, preempted


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("fault", "code", "noticed", "reason"),
    [
        (NotOwner("x"), 79, 79, "not-owner"),
        (ContractRefused("x"), 78, 78, "contract"),
        (BaseChanged("x"), 78, 78, "base-changed"),
        (UserError("x"), 78, 78, "user"),
        (LogDamaged("x"), 78, 78, "log-damaged"),
        (MemoryError(), 77, 76, "oom"),
        (OutOfMemoryError("x"), 77, 76, "oom"),
        (RuntimeError("CUDA error: out of memory"), 77, 76, "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 77, 76, "oom"),
        (RuntimeError("Connection closed by peer"), 1, 76, "crash"),
        (StorageError("x"), 74, 76, "storage"),
        (NotFound("x"), 1, 76, "crash"),
        (KeyboardInterrupt(), 1, 76, "crash"),
    ],
)
def test_codes(fault: BaseException, code: int, noticed: int, reason: str) -> None:
    ending = ending_of(fault, noticed=False)
    assert (ending.code, ending.reason) == (code, reason)
    assert ending.message
    assert ending_of(fault, noticed=True).code == noticed


def test_way_out_keeps_its_verdict() -> None:
    assert ending_of(preempted(committed=True, message="m"), noticed=True).code == 75
    assert ending_of(preempted(committed=False, message="m"), noticed=True).code == 76


def test_other_errors_that_mention_memory_are_no_oom() -> None:
    assert not is_out_of_memory(ValueError("out of memory"))
