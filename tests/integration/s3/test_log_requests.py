"""Requests that a long log costs on a real S3 server, counted on the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import LogRecord, encode_record
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Storage
from tests.harness.s3proxy import Proxy
from tests.harness.weed import Weed

pytestmark = pytest.mark.s3

LONG = 1500


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    proxy = Proxy(weed.port)
    yield proxy
    proxy.close()


def fill(storage: Storage, count: int) -> None:
    prev, found = "", []
    for seq in range(1, count + 1):
        record = LogRecord(seq=seq, kind="fence", attempt=1, token=f"t{seq}", prev=prev, time="")
        data = encode_record(record)
        prev = sha256(data)
        found.append((layout.log_record(seq), data))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: storage.put(*item), found))


def test_a_long_log_costs_few_requests(
    weed: Weed, proxy: Proxy, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_storage(s3_uri), LONG)
    weed.use(monkeypatch, proxy.endpoint)
    storage = open_storage(s3_uri)
    log = RunLog(storage)

    def cost(do: object) -> int:
        before = proxy.served
        do()  # type: ignore[operator]
        return proxy.served - before

    assert cost(log.read) <= LONG + 6  # two pages of the listing, the copy, the end
    assert cost(log.read) == 2
    assert [cost(lambda: log.append("fence", 1)) for _ in range(3)] == [2, 2, 2]
    log.read()
    log.keep_copy()
    fresh = RunLog(storage)
    assert cost(fresh.read) <= 4
    assert fresh.read().last_seq == LONG + 3
    assert len(fresh.read().records) == LONG + 3
