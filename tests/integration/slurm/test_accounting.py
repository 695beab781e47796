"""With slurmdbd: jobs that Slurm itself has forgotten are still told apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backends.slurm import queue
from orchestrator.backends.slurm.backend import SlurmBackend
from tests.harness.slurm_cluster import Cluster, missing
from tests.harness.slurm_runs import SlurmBench, job_id

pytestmark = pytest.mark.slurm

FORGETS_S = 2


@pytest.fixture
def accounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmBench]:
    """A cluster with accounting that forgets a job two seconds after its end."""
    why = missing(dbd=True)
    if why is not None:
        pytest.skip(f"{why}; then: make test-slurm")
    folder = tmp_path / "slurm"
    cluster = Cluster(folder, dbd=True, settings={"MinJobAge": str(FORGETS_S)})
    try:
        cluster.start()
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        monkeypatch.setattr("orchestrator.backends.slurm.queue.FRESH_S", 0.3)
        monkeypatch.setattr(queue, "_answers", queue._Answers())
        monkeypatch.setattr("orchestrator.operations.submit.REPORT_S", 0.2)
        yield SlurmBench(tmp_path / "bench", cluster=cluster)
    finally:
        cluster.stop()


@pytest.mark.timeout(300)
def test_a_forgotten_job_is_found_in_the_accounting(accounted: SlurmBench) -> None:
    bench = accounted
    run = bench.submit(step_s=0.15)
    run.until_step(3)
    bench.cluster.take_nodes()
    run.until_attempt(2)
    run.until_step(9)
    bench.cluster.client("scancel", job_id(run))
    end = time.monotonic() + 150.0
    while job_id(run) in bench.cluster.client("squeue", "--states=all", "-h", "-o", "%i").split():
        assert time.monotonic() < end, "Slurm does not forget"
        time.sleep(1.0)
    backend = SlurmBackend(bench.registry.state_dir)
    job = run.job()
    seen = backend.observe([job])[job]
    assert (seen.phase, seen.ending) == ("gone", "cancelled")
    assert run.drive().state == "CANCELLED"
    rows = bench.cluster.client("sacct", "-D", "-X", "-n", "-P", "-j", job_id(run), "-o", "State")
    assert rows.splitlines()[0] in ("REQUEUED", "PREEMPTED")
    assert rows.splitlines()[-1].startswith("CANCELLED")
