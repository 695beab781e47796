"""The backend's contract on the real server."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from orchestrator.backends.kubernetes.api import ServerApi
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from tests.harness.kube_contract import KubernetesContract, World, make_spec
from tests.harness.kube_runs import KubeBench

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600)]

STUB = """#!/bin/sh
trap 'exit 75' TERM
while :; do sleep 0.2; done
"""


@pytest.fixture
def world(bench: KubeBench) -> World:
    stub = bench.folder / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    job = replace(bench.job(), python=str(stub))
    job = replace(job, resources=replace(job.resources, gpus_per_node=1))
    return World(
        backend=KubernetesBackend(ServerApi),
        job=job,
        spec=make_spec(job, f"run-261124-{secrets.token_hex(3)}"),
        get=bench.cluster.get,
        patience_s=45.0,
    )


class TestContract(KubernetesContract):
    """On the real server."""
