"""Waiting for a storage that fails, before an attempt trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import StorageError
from orchestrator.storage.protocol import NotFound

T = TypeVar("T")

START_S = 120.0
"""How long it is waited for before anything is claimed or trained: GPUs wait with it."""
AGAIN_S = 2.0
"""Between two tries."""


def patiently(clock: Clock, work: Callable[[], T], limit_s: float = START_S) -> T:
    """`work`, tried again while the storage fails and nothing else is wrong."""
    end = clock.monotonic() + limit_s
    while True:
        try:
            return work()
        except NotFound:
            raise
        except StorageError:
            if clock.monotonic() >= end:
                raise
            clock.sleep(AGAIN_S)
