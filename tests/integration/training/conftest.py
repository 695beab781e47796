from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import jobs
from tests.harness.training import TrainingBench, TrainingRun


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and a tiny model, made once."""
    folder = tmp_path_factory.mktemp("data")
    jobs.write_data(folder)
    jobs.make_model(folder)
    return folder


@pytest.fixture(scope="session")
def straight(
    tmp_path_factory: pytest.TempPathFactory, training_data: Path
) -> Iterator[TrainingRun]:
    """The run that nothing ever happened to."""
    bench = TrainingBench(tmp_path_factory.mktemp("straight"), data=training_data)
    run = bench.probed(bench.job(), [])
    assert run.finish().state == "SUCCEEDED"
    yield run
    bench.close()


@pytest.fixture
def bench(tmp_path: Path, training_data: Path) -> Iterator[TrainingBench]:
    """A workplace whose agents do not outlive the test."""
    bench = TrainingBench(tmp_path, data=training_data)
    yield bench
    bench.close()
