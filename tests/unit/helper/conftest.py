from __future__ import annotations

import pytest

from orchestrator.storage.memory import MemoryStorage
from tests.harness.clock import FakeClock
from tests.unit.helper.sites import Site


@pytest.fixture
def site(memory: MemoryStorage, clock: FakeClock) -> Site:
    return Site(memory, clock)
