"""Fixtures shared by all tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from tests.harness.clock import FakeClock
from tests.harness.weed import Weed, missing

# Before any test imports it: its assertions then say what differs.
pytest.register_assert_rewrite("tests.harness.training")

settings.register_profile("here", deadline=None, print_blob=True, max_examples=30)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=500)
settings.load_profile("here")

_numbers = itertools.count()
BUCKET = "qvl-test"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory() -> Iterator[MemoryStorage]:
    """An empty storage of its own in memory."""
    uri = f"memory://test-{next(_numbers)}"
    yield MemoryStorage(uri)
    MemoryStorage._spaces.pop(uri, None)


@pytest.fixture
def posix(tmp_path: Path) -> PosixStorage:
    """An empty storage of its own on disk."""
    return PosixStorage(tmp_path / "run")


@pytest.fixture
def reports() -> tuple[Callable[[str, dict[str, object]], None], list[tuple[str, dict]]]:
    """A `report` callable and the list that it fills."""
    told: list[tuple[str, dict]] = []
    return lambda kind, data: told.append((kind, data)), told


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One real S3 server a session, with one bucket."""
    if reason := missing():
        pytest.skip(reason)
    server = Weed(tmp_path_factory.mktemp("weed"))
    try:
        server.start()
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3_uri(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of its own; credentials and endpoint are in the environment."""
    weed.use(monkeypatch)
    return f"s3://{BUCKET}/t{next(_numbers)}"
