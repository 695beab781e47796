"""The fake Slurm does what the backend relies upon (the real one too: ../slurm)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.backends.slurm.backend import SlurmBackend
from tests.harness.fake_slurm.cluster import FakeCluster
from tests.harness.slurm_contract import SlurmContract

pytestmark = pytest.mark.slurm


class TestFakeSlurm(SlurmContract):
    @pytest.fixture
    def backend(self, fake: FakeCluster, tmp_path: Path) -> SlurmBackend:
        return SlurmBackend(tmp_path / "state")

    @pytest.fixture
    def busy(self, fake: FakeCluster) -> None:
        fake.set(hold=True)

    @pytest.fixture
    def silence(self, fake: FakeCluster) -> Callable[[], None]:
        return lambda: fake.set(down=True)
