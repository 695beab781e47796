"""The real Slurm does what the backend relies upon (the fake one too: ../slurm_fake)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.backends.slurm.backend import SlurmBackend
from tests.harness.slurm_cluster import Cluster
from tests.harness.slurm_contract import SlurmContract
from tests.harness.slurm_runs import SlurmBench

pytestmark = pytest.mark.slurm


class TestRealSlurm(SlurmContract):
    @pytest.fixture
    def backend(self, bench: SlurmBench, tmp_path: Path) -> SlurmBackend:
        return SlurmBackend(tmp_path / "state")

    @pytest.fixture
    def busy(self, bench: SlurmBench) -> None:
        bench.cluster.take_nodes(5.0)

    @pytest.fixture
    def silence(self, slurm: Cluster) -> Iterator[Callable[[], None]]:
        yield lambda: slurm.kill("slurmctld")
        slurm.start_controller()
