"""Writing one large S3 object from memory: parts sent side by side, memory bounded."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from orchestrator.errors import StorageError
from orchestrator.storage.object_store.store import Body

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000
"""S3's own limit; with PART_BYTES it makes the largest file 78 GiB."""


class UploadRequests(Protocol):
    """The requests that an upload is made of."""

    def put(self, key: str, data: Body) -> None: ...
    def begin_upload(self, key: str, token: str) -> str: ...
    def start_part(
        self, key: str, upload_id: str, number: int, data: Body
    ) -> Future[dict[str, Any]]: ...
    def complete_upload(
        self, key: str, upload_id: str, token: str, parts: Sequence[dict[str, Any]]
    ) -> None: ...
    def abort_upload(self, key: str, upload_id: str, patience_s: float | None = None) -> None: ...


class Upload:
    """One object, at most PARTS_AT_ONCE + 1 parts of it in memory.

    What fits into one part is sent by a single request. Not for several threads at once.
    """

    def __init__(self, client: UploadRequests, key: str) -> None:
        self._client = client
        self._key = key
        self._token = secrets.token_hex(16)
        self._id: str | None = None
        self._part = bytearray()
        self._sent: list[Future[dict[str, Any]]] = []
        self._free = threading.BoundedSemaphore(PARTS_AT_ONCE)

    def write(self, view: memoryview) -> None:
        """Take bytes (copied). Raises StorageError, also for a part sent before."""
        while view.nbytes:
            room = PART_BYTES - len(self._part)
            self._part += view[:room]
            view = view[room:]
            if len(self._part) == PART_BYTES:
                self._send()

    def finish(self) -> None:
        """Make the object visible, durably. Raises StorageError."""
        if self._id is None:
            self._client.put(self._key, self._part)
            return
        if self._part:
            self._send()
        parts = [sent.result() for sent in self._sent]
        self._client.complete_upload(self._key, self._id, self._token, parts)

    def abandon(self) -> None:
        """Give up, with one try: what it leaves, the janitor finds."""
        for sent in self._sent:
            sent.cancel()
        if self._id is not None:
            with suppress(StorageError):
                self._client.abort_upload(self._key, self._id, 0.0)

    def _send(self) -> None:
        if len(self._sent) == MAX_PARTS:
            raise StorageError(f"{self._key} has more than {MAX_PARTS * PART_BYTES} bytes")
        if self._id is None:
            self._id = self._client.begin_upload(self._key, self._token)
        self._free.acquire()
        for sent in self._sent:
            if sent.done():
                sent.result()
        number, data, self._part = len(self._sent) + 1, self._part, bytearray()
        sent = self._client.start_part(self._key, self._id, number, data)
        sent.add_done_callback(lambda _: self._free.release())
        self._sent.append(sent)
