"""A gang on a real Kubernetes that has room for a part of it, or whose peers do not come."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.backends.kubernetes import reading
from orchestrator.run_directory import attempts
from tests.harness.kube_runs import KubeBench, run_events

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600)]


def test_a_gang_waits_for_room_as_long_as_it_takes(
    bench: KubeBench, calm: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod that finds room holds it for a while, gives it back, and comes again; nothing of
    that is an attempt, and it takes no new submission.
    """
    monkeypatch.setattr(reading, "ROOM_S", 8.0)
    takers = bench.leave_room(1)
    run = bench.submit(bench.job(nodes=2))
    wanted = "waits for 1 of 2 pods: no node has room: 0/2"
    run.drive(lambda s: (s.row["message"] or "").startswith(wanted))
    run.drive(lambda s: s.row["reason"] == "no room")
    bench.cluster.wait(lambda: not bench.cluster.running(run.run.run_id))
    assert run.look().state == "QUEUED"
    assert run.look().row["message"].startswith("waits for 1 of 2 pods: no node has room")
    monkeypatch.setattr(reading, "ROOM_S", 2.0)
    run.hurry()
    run.drive(lambda _: len(run_events(run, "given_back")) >= 12, seconds=240.0)
    assert attempts.read_claims(run.storage) == []
    assert len(attempts.read_submissions(run.storage)) == 1
    bench.cluster.kubectl("delete", "pod", *takers, "--grace-period=0", "--force")
    end = run.drive(seconds=120.0)
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1), end.row
    assert run.outcome() == calm
