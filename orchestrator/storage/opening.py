"""From a URI to a storage; the one place that knows the schemes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.contract.env import AGENT_FD
from orchestrator.errors import UserError
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.patience import Patience
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Storage

if TYPE_CHECKING:
    from orchestrator.storage.object_store.store import ObjectStorage

SCHEMES = ("file", "s3", "gs", "abfs", "memory")
_INSTALL = {
    "s3": "pip install 'qvl-orchestrate[s3]'",
    "gs": "pip install gcsfs",
    "abfs": "pip install adlfs",
}

PATIENCE_S = 5.0
"""Seconds that a person waits for an object store that does not answer."""
ATTEMPT_PATIENCE_S = 30.0
"""The same for the processes of an attempt: a store may restart under them."""


def open_storage(
    uri: str,
    *,
    group_sharing: bool | None = None,
    patience_s: float | None = None,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Storage:
    """The storage rooted at `uri`: an absolute path, or `scheme://...` of SCHEMES.

    group_sharing: what new files on a file system are (PosixStorage); None = as the root stands
    patience_s: how long a request to an object store is tried again; None = as it suits this
        process
    seconds_left: until this process is killed, infinite while nothing is known of that; what is
        known takes the place of the patience

    Nothing is sent to the store yet. Raises UserError for a scheme that is not supported
    (or whose library is not installed), a relative path, or a URI with credentials.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "file", uri
    if scheme == "memory":
        return MemoryStorage(uri)
    if scheme not in SCHEMES:
        raise UserError(
            f"storage scheme {scheme}:// is not supported",
            hint=f"use a path on a shared file system; known schemes: {', '.join(SCHEMES)}",
        )
    if scheme != "file":
        patience = Patience(_patience_s() if patience_s is None else patience_s, seconds_left)
        return _open_objects(uri, scheme, patience)
    if not rest.startswith("/"):
        raise UserError(f"storage path {rest!r} is not absolute")
    storage = PosixStorage(Path(rest), group_sharing=group_sharing)
    storage.check_private()
    return storage


def child(uri: str, name: str) -> str:
    """URI of `name` below `uri`."""
    return f"{uri.rstrip('/')}/{name}"


def is_remote(uri: str) -> bool:
    """True for a storage whose objects lie on no file system of this machine."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme != "file"


def _patience_s() -> float:
    """Helper, ranks and what they start wait longer than a person does."""
    return ATTEMPT_PATIENCE_S if AGENT_FD in os.environ else PATIENCE_S


def _open_objects(uri: str, scheme: str, patience: Patience) -> ObjectStorage:
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise UserError(
            f"{scheme}://...@{parts.netloc.rpartition('@')[2]}: the address contains credentials",
            hint="remove them; they are taken from the environment",
        )
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if not bucket:
        raise UserError(f"{uri}: the bucket is missing", hint=f"use {scheme}://bucket/prefix")
    try:
        return _objects(uri, scheme, bucket, f"{prefix}/" if prefix else "", patience)
    except ImportError as fault:
        raise UserError(
            f"{scheme}:// needs a package that is not installed ({fault.name or fault})",
            hint=_INSTALL[scheme],
        ) from None


def _objects(uri: str, scheme: str, bucket: str, prefix: str, patience: Patience) -> ObjectStorage:
    """Imports the client's libraries, which nothing else does."""
    from orchestrator.storage.object_store.store import ObjectStorage

    if scheme == "s3":
        from orchestrator.storage.object_store.s3_client import S3Client

        return ObjectStorage(uri, S3Client(bucket, patience), prefix)
    from orchestrator.storage.object_store.fsspec_client import FsspecClient

    return ObjectStorage(uri, FsspecClient.of(scheme, bucket), prefix)
