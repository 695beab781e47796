"""A Slurm that takes only so many jobs of a user: the others wait outside, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backends.slurm import queue
from orchestrator.errors import UserError
from orchestrator.run_directory import attempts
from tests.harness.slurm_cluster import Cluster, missing
from tests.harness.slurm_runs import SlurmBench

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmBench]:
    """A cluster that takes one job of this user at a time."""
    why = missing(dbd=True)
    if why is not None:
        pytest.skip(f"{why}; then: make test-slurm")
    cluster = Cluster(
        tmp_path / "slurm", dbd=True, settings={"AccountingStorageEnforce": "associations,limits"}
    )
    try:
        cluster.start()
        cluster.client("sacctmgr", "-i", "add", "account", "vision")
        cluster.client("sacctmgr", "-i", "add", "user", "root", "account=vision")
        cluster.client("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=1")
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        monkeypatch.setattr("orchestrator.backends.slurm.queue.FRESH_S", 0.3)
        monkeypatch.setattr(queue, "_answers", queue._Answers())
        monkeypatch.setattr("orchestrator.operations.submit.REPORT_S", 0.2)
        yield SlurmBench(tmp_path / "bench", cluster=cluster)
    finally:
        cluster.stop()


def test_what_slurm_does_not_take_is_submitted_when_it_does(limited: SlurmBench) -> None:
    first = limited.submit(step_s=0.2)
    second = limited.submit(step_s=0.02)
    waiting = second.look()
    assert (waiting.state, waiting.settled) == ("QUEUED", False), waiting.row
    assert "AssocMaxSubmitJobLimit" in waiting.row["message"]
    assert waiting.row["backend_job_id"] is None
    assert first.drive().state == "SUCCEEDED"
    assert second.drive().state == "SUCCEEDED"
    assert len({run.outcome()[1] for run in (first, second)}) == 1
    for run in (first, second):
        assert len(attempts.read_submissions(run.storage)) == 1
        assert len(attempts.read_claims(run.storage)) == 1


def test_a_job_that_is_too_large_for_ever_is_refused(limited: SlurmBench) -> None:
    """Slurm has the same words for both: "violates accounting/QOS policy"."""
    limited.cluster.client(
        *("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxTRESPerJob=cpu=1"),
        *("Flags=DenyOnLimit",),
    )
    with pytest.raises(UserError, match="accounting/QOS policy"):
        limited.submit(step_s=0.2)
