"""Single records as objects: sealed when they are written, checked when they are read."""

from __future__ import annotations

from typing import Any, TypeVar

from orchestrator.contract.jsonio import (
    MalformedJson,
    NewerSchema,
    canonical,
    from_json,
    pretty,
    seal,
    to_json,
    unseal,
)
from orchestrator.errors import NewerVersion, RecordDamaged
from orchestrator.storage.protocol import Storage

R = TypeVar("R")


def encode(record: Any) -> bytes:
    """A record for programs."""
    return canonical(seal(to_json(record)))


def encode_pretty(record: Any) -> bytes:
    """A record that people read too."""
    return pretty(seal(to_json(record)))


def decode(cls: type[R], data: bytes, path: str) -> R:
    """The record that stands at `path`. Raises RecordDamaged, or NewerVersion."""
    try:
        return from_json(cls, unseal(data))
    except NewerSchema as fault:
        raise NewerVersion(f"{path} was {fault}") from None
    except MalformedJson as fault:
        raise RecordDamaged(f"{path} is damaged: {fault}") from None


def read(storage: Storage, cls: type[R], path: str) -> R:
    """As `decode`. Raises NotFound too, and StorageError for bytes that do not arrive now."""
    return decode(cls, storage.get(path), path)
