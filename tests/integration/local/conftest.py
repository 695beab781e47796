from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.runs import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workplace whose agents do not outlive the test."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()
