"""`python -m benchmarks.s3_client CLIENT BYTES BUCKET`: one upload and one download, measured.

In a process of its own, so that memory and CPU are this client's alone. Prints JSON: seconds
up and down, CPU seconds, and the peak of memory beyond the data itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PART_BYTES, THREADS = 16 << 20, 4
KEY = "bench/object"

Verbs = tuple[Callable[[], object], Callable[[], int]]
"""Upload; download, giving the number of bytes."""


def ours(bucket: str, data: memoryview) -> Verbs:
    """The storage of this project: hashed on the way up, checked on the way down."""
    from orchestrator.storage.hashing import ContentHash
    from orchestrator.storage.opening import open_storage

    storage = open_storage(f"s3://{bucket}")

    def up() -> None:
        with storage.write_stream(KEY) as sink:
            for start in range(0, len(data), PART_BYTES):
                sink.write(data[start : start + PART_BYTES])

    def down() -> int:
        content = ContentHash()
        for chunk in storage.read(KEY):
            content.update(chunk)
        return content.size_bytes

    return up, down


def botocore_threads(bucket: str, data: memoryview) -> Verbs:
    """A multipart upload by hand: parts side by side over botocore's own client."""
    import botocore.session
    from botocore.config import Config

    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"],
        config=Config(max_pool_connections=THREADS),
    )
    place: dict[str, Any] = {"Bucket": bucket, "Key": KEY}

    def up() -> None:
        started = client.create_multipart_upload(**place)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            body = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
            reply = client.upload_part(**place, UploadId=started, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": reply["ETag"]}

        count = -(-len(data) // PART_BYTES)
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(send, range(1, count + 1)))
        client.complete_multipart_upload(
            **place, UploadId=started, MultipartUpload={"Parts": parts}
        )

    def down() -> int:
        body, size = client.get_object(**place)["Body"], 0
        while chunk := body.read(1 << 20):
            size += len(chunk)
        return size

    return up, down


def s3fs_pipe(bucket: str, data: memoryview) -> Verbs:
    """s3fs's own verbs, as most people use them."""
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    whole = bytes(data)

    def down() -> int:
        with fs.open(f"{bucket}/{KEY}", "rb", block_size=PART_BYTES) as file:
            return sum(len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))

    return lambda: fs.pipe_file(f"{bucket}/{KEY}", whole, chunksize=PART_BYTES), down


def obstore_put(bucket: str, data: memoryview) -> Verbs:
    """The client of the Rust crate object_store."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        bucket,
        endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def up() -> None:
        obstore.put(store, KEY, data, chunk_size=PART_BYTES, max_concurrency=THREADS)

    return up, lambda: sum(len(chunk) for chunk in obstore.get(store, KEY).stream(1 << 20))


CLIENTS: dict[str, Callable[[str, memoryview], Verbs]] = {
    "ours": ours,
    "botocore, 4 threads": botocore_threads,
    "s3fs": s3fs_pipe,
    "obstore": obstore_put,
}


def main(name: str, size: int, bucket: str) -> None:
    """Measure one client once; a small object before makes it warm."""
    small = memoryview(os.urandom(1 << 20))
    up, down = CLIENTS[name](bucket, small)
    up()
    down()
    data = memoryview(os.urandom(1 << 20) * -(-size >> 20))[:size]
    up, down = CLIENTS[name](bucket, data)
    before, memory = _cpu_seconds(), _fresh_peak()
    found = {"up": _seconds(up)}
    found["up_cpu"], found["up_peak"] = _cpu_seconds() - before, _peak() - memory
    before, memory = _cpu_seconds(), _fresh_peak()
    found["down"] = _seconds(lambda: _whole(down, size))
    found["down_cpu"], found["down_peak"] = _cpu_seconds() - before, _peak() - memory
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def _whole(down: Callable[[], int], size: int) -> None:
    found = down()
    if found != size:
        raise RuntimeError(f"{found} bytes came back instead of {size}")


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _fresh_peak() -> int:
    """Forget the peak so far; the memory in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
