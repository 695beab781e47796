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
# Plays the agent: takes a slot, or stands aside; ends with 75 at a notice.
trap 'exit 75' TERM
nodes=$(echo "$QVL_SPEC" | sed 's/.*"nodes":\\([0-9]*\\).*/\\1/')
slot=0
while ! mkdir "FOLDER/$QVL_JOB_UID-$slot" 2>/dev/null; do
  slot=$((slot + 1))
  [ "$slot" -lt "$nodes" ] || exit 79
done
while :; do sleep 0.2; done
"""


@pytest.fixture
def world(bench: KubeBench) -> World:
    stub = bench.folder / "stub"
    stub.write_text(STUB.replace("FOLDER", str(bench.folder)))
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
