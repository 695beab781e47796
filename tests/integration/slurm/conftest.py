from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.slurm import queue
from tests.harness.runs import Bench
from tests.harness.slurm_cluster import Cluster, missing
from tests.harness.slurm_runs import SlurmBench


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One real Slurm for the session."""
    why = missing()
    if why is not None:
        pytest.skip(f"{why}; then: make test-slurm")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def bench(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmBench]:
    """A workplace on the cluster; its jobs do not outlive the test."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setattr("orchestrator.backends.slurm.queue.FRESH_S", 0.3)
    monkeypatch.setattr(queue, "_answers", queue._Answers())
    monkeypatch.setattr("orchestrator.operations.submit.REPORT_S", 0.2)
    bench = SlurmBench(tmp_path, cluster=slurm)
    yield bench
    bench.close()
    slurm.wait_idle()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The outcome of an undisturbed run of the same job, on the local backend."""
    bench = Bench(tmp_path_factory.mktemp("calm"))
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    bench.close()
    return run.outcome()
