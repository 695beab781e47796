from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.slurm import queue
from tests.harness.fake_slurm.cluster import FakeCluster
from tests.harness.runs import Bench
from tests.harness.slurm_runs import SlurmBench


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A fake Slurm whose clients are first on PATH."""
    environ = {"PATH": os.environ["PATH"]}
    cluster = FakeCluster(tmp_path / "slurm")
    cluster.install(environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(queue, "FRESH_S", 0.1)
    monkeypatch.setattr(queue, "_answers", queue._Answers())
    monkeypatch.setattr("orchestrator.operations.submit.REPORT_S", 0.1)
    yield cluster
    cluster.close()


@pytest.fixture
def bench(fake: FakeCluster, tmp_path: Path) -> SlurmBench:
    """A workplace on it."""
    return SlurmBench(tmp_path / "bench", cluster=fake)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The outcome of an undisturbed run of the same job, on the local backend."""
    bench = Bench(tmp_path_factory.mktemp("calm"))
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    bench.close()
    return run.outcome()
