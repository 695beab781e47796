from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.kube_cluster import Cluster, missing, up
from tests.harness.kube_runs import KubeBench
from tests.harness.runs import Bench


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One real Kubernetes for the session, with the shipped Role."""
    why = missing()
    if why is not None:
        pytest.skip(f"{why}; then: make test-k8s")
    found = up()
    try:
        text = found.prepare()
        found.clear()
        found.account = tmp_path_factory.mktemp("kube") / "config"
        found.account.write_text(text)
        yield found
    finally:
        found.down()


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeBench]:
    """A workplace on the cluster with the rights of the shipped Role only."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.account))
    monkeypatch.setattr("orchestrator.backends.kubernetes.cluster.FRESH_S", 0.2)
    monkeypatch.setattr("orchestrator.operations.submit.REPORT_S", 0.2)
    bench = KubeBench(tmp_path, cluster=cluster)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The outcome of an undisturbed run of the same job, on the local backend."""
    bench = Bench(tmp_path_factory.mktemp("calm"))
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    bench.close()
    return run.outcome()
