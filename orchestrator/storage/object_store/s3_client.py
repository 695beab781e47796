"""S3 through s3fs: its event loop, its client and its search for credentials.

s3fs's own verbs are passed over for its client: they resend what must not be resent, cache
listings, and leave checksums and conditions out. One connection a process serves all its
threads; a forked child makes its own. Retries are made here and nowhere below.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import s3fs
from aiobotocore.session import AioSession
from botocore.handlers import add_expect_header

from orchestrator.storage.object_store.faults import (
    FAULTS,
    code_of,
    is_denied,
    is_expired,
    is_taken,
    may_pass,
    translate,
)
from orchestrator.storage.object_store.store import Body, Found
from orchestrator.storage.object_store.upload import Upload
from orchestrator.storage.patience import Patience
from orchestrator.storage.protocol import PendingUpload, Refused

T = TypeVar("T")

CONNECT_S = 3.0
REPLY_S = 10.0
"""How long one request may wait for the next byte of its reply."""
SLOWEST_BYTES_PER_S = 1e6
"""An upload slower than this, over one request, counts as hung."""
PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
CONNECTIONS = 16


def send_limit_s(size_bytes: int) -> float:
    """Seconds that a request with a body of that size may take."""
    return REPLY_S + size_bytes / SLOWEST_BYTES_PER_S


class Connection:
    """One client with its own settings, used from any thread."""

    def __init__(self) -> None:
        self._fs = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": REPLY_S,
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "max_pool_connections": CONNECTIONS,
                "response_checksum_validation": "when_required",
            },
        )
        self._client: Any = None

    @property
    def endpoint(self) -> str:
        """Where the requests go, as messages name it."""
        return "S3" if self._client is None else str(self._client.meta.endpoint_url)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin `work` on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._fs.loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`; an interrupted caller takes it along."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()

    async def request(
        self,
        place: str,
        once: Callable[[Any], Awaitable[T]],
        *,
        patience: Patience,
        limit_s: float | None = None,
    ) -> T:
        """What `once` gives, tried again while the fault may pass and the patience lasts.

        place: the URI that messages name
        limit_s: of one try, which is waited for beyond the patience

        Raises StorageError.
        """
        clock = asyncio.get_running_loop().time
        begun, tries, renewed = None, 0, False
        while True:
            try:
                client = await self._ready(place)
                begun = begun or clock()
                async with asyncio.timeout(patience.limit_s(limit_s)):
                    return await once(client)
            except FAULTS as fault:
                if not renewed and is_denied(fault) and await self._read_anew(fault):
                    renewed, pause = True, 0.0
                else:
                    pause = min(PAUSE_S * 2**tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)  # noqa: S311
                    tries += 1
                    spent = clock() - begun if begun else math.inf
                    if not may_pass(fault, tries) or not patience.allows(spent, pause):
                        raise translate(fault, place, self.endpoint) from fault
            await asyncio.sleep(pause)

    async def _read_anew(self, fault: BaseException) -> bool:
        """Look for credentials again: somebody may have renewed those in a file. True if another
        try is worth it. Only other credentials make another client: each stays in memory.
        """
        if self._client is None:
            return False
        used = self._client._request_signer._credentials
        try:
            found = await AioSession(**self._fs.kwargs).get_credentials()
            if await _values(found) == await _values(used):
                return is_expired(fault)
        except FAULTS:
            return False
        self._client = None
        return True

    async def _ready(self, place: str) -> Any:
        if self._client is None:
            try:
                client = await self._fs.set_session(refresh=self._fs._s3 is not None)
            except ValueError as fault:
                raise Refused(
                    f"{place}: {fault}",
                    hint="check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: https://host:port",
                ) from fault
            # A server that never says "100 continue" would be waited for without a limit.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            self._client = client
        return self._client


async def _values(credentials: Any) -> tuple[str, ...] | None:
    return None if credentials is None else tuple(await credentials.get_frozen_credentials())


_lock = threading.Lock()
_shared: list[Connection] = []
_parents: list[Connection] = []
"""Of the process that forked this one: never used, and never closed from here."""


def connection() -> Connection:
    """The one connection of this process."""
    with _lock:
        if not _shared:
            _shared.append(Connection())
        return _shared[0]


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    _parents.extend(_shared)
    _shared.clear()


os.register_at_fork(after_in_child=_forked)


class S3Client:
    """Objects of one bucket (an `objects.ObjectClient`)."""

    def __init__(self, bucket: str, patience: Patience) -> None:
        self._bucket = bucket
        self._patience = patience

    def get(self, key: str, patience_s: float | None = None) -> bytes:
        async def once(client: Any) -> bytes:
            reply = await client.get_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
            async with reply["Body"] as body:
                data: bytes = await body.read()
                return data

        return self._do(key, once, None, patience_s)

    def chunks(self, key: str, chunk_bytes: int) -> Iterator[memoryview]:
        reader = _Reader(self._bucket, key, chunk_bytes)
        try:
            while chunk := self._do(key, reader.next):
                yield memoryview(chunk)
        finally:
            connection().wait(reader.close())

    def put(self, key: str, data: Body) -> None:
        self._do(key, lambda c: self._put(c, key, data), send_limit_s(len(data)))

    def put_new(self, key: str, data: bytes) -> bool:
        async def once(client: Any) -> bool:
            try:
                await self._put(client, key, data, IfNoneMatch="*")
            except FAULTS as fault:
                if is_taken(fault):
                    return False
                raise
            return True

        return self._do(key, once, send_limit_s(len(data)))

    def delete(self, key: str) -> None:
        self._do(key, lambda c: c.delete_object(Bucket=self._bucket, Key=key))

    def list(self, prefix: str, *, deep: bool, after: str = "") -> Iterator[Found]:
        ask = {"Bucket": self._bucket, "Prefix": prefix}
        if after:
            ask["StartAfter"] = after
        if not deep:
            ask["Delimiter"] = "/"
        while True:
            page = self._do(prefix, lambda c: c.list_objects_v2(**ask))
            for item in page.get("Contents", ()):
                yield Found(item["Key"], item["Size"])
            if not page.get("IsTruncated"):
                return
            ask["ContinuationToken"] = page["NextContinuationToken"]

    def upload(self, key: str) -> Upload:
        return Upload(self, key)

    def uploads(self, prefix: str) -> Iterator[PendingUpload]:
        ask = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            page = self._do(prefix, lambda c: c.list_multipart_uploads(**ask))
            for item in page.get("Uploads", ()):
                begun = item["Initiated"].timestamp()
                yield PendingUpload(item["Key"], item["UploadId"], begun)
            if not page.get("IsTruncated"):
                return
            ask["KeyMarker"] = page["NextKeyMarker"]
            ask["UploadIdMarker"] = page["NextUploadIdMarker"]

    # --- the verbs of a multipart upload, for `upload`

    def begin_upload(self, key: str, token: str) -> str:
        """A new upload; the finished object will carry `token`."""

        async def once(client: Any) -> str:
            reply = await client.create_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                ChecksumAlgorithm="CRC32",
                Metadata={"qvl-upload": token},
            )
            return str(reply["UploadId"])

        return self._do(key, once)

    def start_part(
        self, key: str, upload_id: str, number: int, data: Body
    ) -> concurrent.futures.Future[dict[str, Any]]:
        """Begin to send one part; gives what `complete_upload` wants to know of it."""

        async def once(client: Any) -> dict[str, Any]:
            reply = await client.upload_part(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="CRC32",
            )
            part = {"PartNumber": number, "ETag": reply["ETag"]}
            if "ChecksumCRC32" in reply:
                part["ChecksumCRC32"] = reply["ChecksumCRC32"]
            return part

        shared = connection()
        return shared.start(
            shared.request(
                self._place(key),
                once,
                patience=self._patience,
                limit_s=send_limit_s(len(data)),
            )
        )

    def complete_upload(
        self, key: str, upload_id: str, token: str, parts: Sequence[dict[str, Any]]
    ) -> None:
        """Make the object visible; a reply that was lost is settled by the token."""

        async def once(client: Any) -> None:
            try:
                await client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},
                )
            except FAULTS as fault:
                if code_of(fault) != "NoSuchUpload" or not await self._carries(client, key, token):
                    raise

        self._do(key, once, send_limit_s(len(parts) << 20))

    def abort_upload(self, key: str, upload_id: str, patience_s: float | None = None) -> None:
        """Give up an upload; none of that id is fine."""

        async def once(client: Any) -> None:
            try:
                await client.abort_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload_id
                )
            except FAULTS as fault:
                if code_of(fault) not in ("NoSuchUpload", "NoSuchKey"):
                    raise

        self._do(key, once, REPLY_S, patience_s)

    # --- below

    async def _carries(self, client: Any, key: str, token: str) -> bool:
        try:
            reply = await client.head_object(Bucket=self._bucket, Key=key)
        except FAULTS as fault:
            if code_of(fault) in ("404", "NoSuchKey"):
                return False
            raise
        return bool(reply.get("Metadata", {}).get("qvl-upload") == token)

    async def _put(self, client: Any, key: str, data: Body, **condition: str) -> None:
        await client.put_object(
            Bucket=self._bucket, Key=key, Body=data, ChecksumAlgorithm="CRC32", **condition
        )

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _do(
        self,
        key: str,
        once: Callable[[Any], Awaitable[T]],
        limit_s: float | None = None,
        patience_s: float | None = None,
    ) -> T:
        shared = connection()
        patience = self._patience if patience_s is None else Patience(patience_s)
        return shared.wait(
            shared.request(self._place(key), once, patience=patience, limit_s=limit_s)
        )


class _Reader:
    """One object from start to end; goes on where it was when a reply breaks off."""

    def __init__(self, bucket: str, key: str, chunk_bytes: int) -> None:
        self._ask = {"Bucket": bucket, "Key": key}
        self._chunk_bytes = chunk_bytes
        self._body: Any = None
        self._offset = 0
        self._size: int | None = None

    async def next(self, client: Any) -> bytearray:
        """The next chunk, as long as asked; empty at the end."""
        if self._offset == self._size:
            return bytearray()
        try:
            if self._body is None:
                await self._open(client)
            chunk = await self._fill()
        except FAULTS:
            await self.close()
            raise
        self._offset += len(chunk)
        return chunk

    async def close(self) -> None:
        if self._body is not None:
            body, self._body = self._body, None
            await body.aclose()

    async def _open(self, client: Any) -> None:
        rest = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        reply = await client.get_object(**self._ask, **rest)
        self._body = reply["Body"]
        if self._size is None:
            self._size = int(reply["ContentLength"])
            self._ask["IfMatch"] = reply["ETag"]

    async def _fill(self) -> bytearray:
        wanted = min(self._chunk_bytes, (self._size or 0) - self._offset)
        chunk = bytearray()
        while missing := wanted - len(chunk):
            part = await self._body.read(missing)
            if not part:
                raise ConnectionError(f"ended after {self._offset + len(chunk)} bytes")
            chunk += part
        return chunk
