"""Taken away on a real Kubernetes: finished as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.kube_runs import KubeBench, codes, run_events
from tests.harness.runs import Driven

STEP_S = 0.15


def check_end(run: Driven, calm: tuple[Any, ...], *, attempts: int = 2) -> None:
    """Finished, equal to the calm run, in so many attempts."""
    end = run.drive(seconds=120.0)
    assert end.state == "SUCCEEDED", (end.row, run.logs())
    assert end.row["attempt"] == attempts
    assert run.outcome() == calm


def test_undisturbed(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit()
    check_end(run, calm, attempts=1)


def test_a_pod_is_deleted(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    [pod] = bench.cluster.running(run.run.run_id)
    bench.cluster.delete_pod(pod["metadata"]["name"])
    check_end(run, calm)
    assert codes(run, 1) == [75]
    assert [c[2] for c in run.commits() if c[0] == 1][-1] == "notice"
