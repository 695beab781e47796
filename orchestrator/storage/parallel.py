"""Small reads side by side, where each is a request that takes its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orchestrator.storage.protocol import NotFound, Storage

T = TypeVar("T")

WORKERS = 16
"""As many as a client of an object store has connections."""
_ANY = "x"


def together(storage: Storage, calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each call gives, in order; on a file system one after the other. Raises what the
    first of them raises.
    """
    if len(calls) < 2 or storage.local_path(_ANY) is not None:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(WORKERS, len(calls)), "reads") as pool:
        return list(pool.map(lambda call: call(), calls))


def get_all(storage: Storage, paths: Sequence[str]) -> list[bytes | None]:
    """The objects at `paths`, None for each that is not there. Raises StorageError."""
    return together(storage, [lambda path=path: _get(storage, path) for path in paths])  # type: ignore[misc]


def _get(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.get(path)
    except NotFound:
        return None
