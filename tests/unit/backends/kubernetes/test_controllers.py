"""Controllers of runs on a pretended server: found, leased, missed; what is stuck taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import FakeClock, SystemClock
from orchestrator.contract.resolved import Resources
from orchestrator.controller import loop, status
from orchestrator.controller.loop import Rounds
from orchestrator.registry.store import Registry
from tests.harness.fake_kube import FakeKube
from tests.harness.runs import Bench, Driven

pytest.importorskip("lightkube")


@pytest.fixture
def run(fake: FakeKube, tmp_path: Path) -> Driven:
    """A run whose pod runs and never says anything."""
    bench = Bench(tmp_path / "bench")
    job = replace(
        bench.job(),
        backend="kubernetes",
        resources=Resources(nodes=1, gpus_per_node=2),
        kubernetes={"image": "example.org/qvl:1"},
    )
    return bench.submit(job)


def reports(rounds: Rounds) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rounds.once(lambda run_id, step: found.update({run_id: step}))
    return found


def test_a_controller_elsewhere_finds_the_run_and_one_at_a_time_holds_it(
    run: Driven, tmp_path: Path
) -> None:
    clock = SystemClock()
    first = Rounds(Registry(tmp_path / "one"), clock)
    second = Rounds(Registry(tmp_path / "two"), clock)
    for rounds in (first, second):
        rounds.discover(lambda _, fault: pytest.fail(str(fault)))
        rounds.discover(lambda _, fault: pytest.fail(str(fault)))
    run_id = run.run.run_id
    assert list(reports(first)) == [run_id]
    assert reports(second) == {}, "the lease is the first one's"
    assert list(reports(first)) == [run_id]
    first.close()
    assert list(reports(second)) == [run_id]


def test_status_says_since_when_nobody_looks_after_a_run(run: Driven) -> None:
    run.look()
    clock = FakeClock(SystemClock().now() + 3600)
    entry = run.run.registry.find(run.run.run_id)
    assert "no controller: " in status.refresh(run.run.registry, clock, entry).row["next"]
    rounds = Rounds(run.run.registry, SystemClock())
    reports(rounds)
    here = SystemClock()
    entry = replace(run.run.registry.find(run.run.run_id), seen_at=0.0)
    assert status.refresh(run.run.registry, here, entry).row["next"] is None
    rounds.close()
    said = status.refresh(run.run.registry, here, entry).row["next"]
    assert said.startswith("no controller since ")
    assert "UTC" in said


def test_a_site_with_a_deployment_gets_no_process(
    run: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: started.append(run_id))
    loop.leave_controller(run.run)
    assert started == [run.run.run_id]
    path = run.directory / "resolved.json"
    changed = path.read_text().replace('"example.org/qvl:1"', '"x", "controller": "deployment"')
    path.chmod(0o600)
    path.write_text(changed)
    loop.leave_controller(run.run)
    assert len(started) == 1


def test_an_image_that_never_comes_is_held_and_its_job_taken_back(
    run: Driven, fake: FakeKube
) -> None:
    [pod] = fake.all("pods")
    waiting = {"reason": "InvalidImageName", "message": "Failed to apply default image tag"}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
    pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    fake.put("pods", pod)
    step = run.look()
    assert (step.state, step.row["reason"]) == ("HELD", "image")
    assert "Failed to apply default image tag" in step.row["message"]
    assert fake.all("jobs") == []
    again = run.look()
    while again.row["reason"] != "unstartable":
        again = run.look()
    assert again.state == "HELD"
    assert "Failed to apply default image tag" in again.row["message"]


def test_a_cancel_of_a_run_with_secrets_forgets_them(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "swordfish")
    bench = Bench(tmp_path / "bench")
    job = replace(
        bench.job(),
        backend="kubernetes",
        secrets=("WORD",),
        kubernetes={"image": "example.org/qvl:1"},
    )
    run = bench.submit(job)
    assert [s["stringData"] for s in fake.all("secrets")] == [{"WORD": "swordfish"}]
    [sent] = fake.all("jobs")
    fake.answer("DELETE", f"/apis/batch/v1/namespaces/mine/jobs/{sent['metadata']['name']}", None)
    assert run.drive().state == "CANCELLED"
    assert fake.all("secrets") == []
