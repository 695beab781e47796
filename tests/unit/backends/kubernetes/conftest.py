from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.kubernetes.api import ServerApi
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.contract.resolved import ResolvedJob, Resources
from tests.harness.fake_kube import FakeKube
from tests.harness.jobs import job as make_job
from tests.harness.kube_contract import World, make_spec


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    """A small job for Kubernetes."""
    return replace(
        make_job(tmp_path),
        backend="kubernetes",
        resources=Resources(nodes=1, gpus_per_node=2, memory_gb=16.0, cpus_per_gpu=4),
        kubernetes={"image": "example.org/qvl:1"},
    )


@pytest.fixture(params=["old", "new"])
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeKube]:
    """A pretended server, an old one and a new one."""
    server = FakeKube(tmp_path, old=request.param == "old")
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    monkeypatch.setattr("orchestrator.backends.kubernetes.cluster.FRESH_S", 0.0)
    yield server
    server.stop()


@pytest.fixture
def world(fake: FakeKube, job: ResolvedJob) -> World:
    return World(
        backend=KubernetesBackend(ServerApi),
        job=job,
        spec=make_spec(job, "run-261124-abcdef"),
        get=fake.all,
    )
