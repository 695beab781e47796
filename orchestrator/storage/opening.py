"""From a URI to a storage; the one place that knows the schemes."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage

SCHEMES = ("file", "memory")


def open_storage(uri: str, *, group_sharing: bool = False) -> Storage:
    """The storage rooted at `uri`: an absolute path, `file://...` or `memory://...`.

    Raises UserError for a scheme that is not supported, or a relative path.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "file", uri
    if scheme == "memory":
        return MemoryStorage(uri)
    if scheme != "file":
        raise UserError(
            f"storage scheme {scheme}:// is not supported",
            hint=f"use a path on a shared file system; known schemes: {', '.join(SCHEMES)}",
        )
    if not rest.startswith("/"):
        raise UserError(f"storage path {rest!r} is not absolute")
    storage = PosixStorage(Path(rest), group_sharing=group_sharing)
    storage.check_private()
    return storage


def child(uri: str, name: str) -> str:
    """URI of `name` below `uri`."""
    return f"{uri.rstrip('/')}/{name}"
