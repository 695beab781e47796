"""The backend on a pretended server, old and new; what only a pretended one can do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.base import JobRef
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.errors import Unreachable, UserError
from tests.harness.fake_kube import FakeKube, Fault
from tests.harness.kube_contract import KubernetesContract, World

pytest.importorskip("lightkube")


class TestContract(KubernetesContract):
    """On the pretended server."""


def test_an_admission_plugin_that_changes_the_gpus_is_refused(world: World, fake: FakeKube) -> None:
    def fewer(job: dict) -> None:
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].popitem()

    fake.mutate = fewer
    with pytest.raises(UserError, match=r"would not keep all of the Job: spec.template.*limits"):
        world.submit()
    assert world.get("jobs") == []


def test_one_that_changes_the_shape_is_refused(world: World, fake: FakeKube) -> None:
    fake.mutate = lambda job: job["spec"].update(parallelism=1, backoffLimit=6)
    with pytest.raises(UserError, match=r"spec\.backoffLimit"):
        world.submit()


def test_kueue_needs_a_server_that_knows_suspend(world: World, fake: FakeKube) -> None:
    job = replace(world.job, kubernetes={**world.job.kubernetes, "queue": "team"})
    if fake.old:
        with pytest.raises(UserError, match=r"spec\.suspend") as caught:
            world.submit(job=job)
        assert "too old for Kueue" in (caught.value.hint or "")
        return
    seen = world.see(world.submit(job=job))
    assert (seen.phase, "suspended" in seen.detail) == ("pending", True)
    [kept] = world.get("jobs")
    assert kept["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_a_job_that_is_suspended_by_hand_waits(world: World, fake: FakeKube) -> None:
    if fake.old:
        pytest.skip("servers before 1.21 do not know `suspend`")
    identifier = world.submit()
    namespace, name = identifier.id.split("/")
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}"
    fake.answer("PATCH", path, {"spec": {"suspend": True}})
    seen = world.until(identifier, "pending")
    assert seen.suspended
    assert "suspended by hand" in seen.detail
    fake.answer("PATCH", path, {"spec": {"suspend": False}})
    assert not world.until(identifier, "running").suspended
    world.backend.notify(identifier, "SIGTERM", None)
    assert world.until(identifier, "gone").suspended, "what it stopped is remembered"


def test_what_a_queue_suspends_is_as_good_as_preempted(world: World, fake: FakeKube) -> None:
    """It takes the room back; the next submission has to queue again."""
    if fake.old:
        pytest.skip("servers before 1.21 do not know `suspend`")
    job = replace(world.job, kubernetes={**world.job.kubernetes, "queue": "team"})
    identifier = world.submit(job=job)
    assert not world.until(identifier, "pending").suspended


def test_a_server_that_is_away_is_unreachable(world: World, fake: FakeKube) -> None:
    identifier = world.submit()
    fake.stop()
    with pytest.raises(Unreachable, match="API server"):
        world.see(identifier)
    fake.start()
    assert world.see(identifier).phase == "running"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_serve_now(world: World, fake: FakeKube, status: int) -> None:
    identifier = world.submit()
    fake.faults = [Fault(status, "TooManyRequests", "later")]
    with pytest.raises(Unreachable, match="later"):
        world.see(identifier)


def test_credentials_that_have_run_out(world: World, fake: FakeKube) -> None:
    """A login that expires overnight must not end the controllers: it may be renewed."""
    fake.faults = [Fault(401, "Unauthorized", "Unauthorized")]
    with pytest.raises(Unreachable, match="credentials") as caught:
        world.submit()
    assert caught.value.hint == "log in to the cluster anew"
    assert world.until(world.submit(), "running")


def test_a_refusal_is_told_in_the_server_s_words(world: World) -> None:
    job = replace(world.job, kubernetes={**world.job.kubernetes, "namespace": "forbidden"})
    with pytest.raises(UserError, match="is forbidden") as caught:
        world.submit(job=job)
    assert "rbac" in (caught.value.hint or "")


def test_a_pod_disruption_budget_refuses_the_eviction(world: World, fake: FakeKube) -> None:
    identifier = world.submit()
    [pod] = world.get("pods")
    causes = [{"reason": "DisruptionBudget"}]
    refusal = Fault(429, "TooManyRequests", "Cannot evict pod", details={"causes": causes})
    real = fake._evict

    def evict(*_: object) -> None:
        raise refusal

    fake._evict = evict  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match="Cannot evict"):
        world.backend.notify(identifier, "SIGTERM", None)
    fake._evict = real  # type: ignore[method-assign]
    assert pod["metadata"]["name"]


def test_all_runs_are_seen_with_one_list_of_jobs_and_one_of_pods(
    world: World, fake: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.backends.kubernetes.cluster.FRESH_S", 60.0)
    first = world.submit()
    ids = [first]
    for i in range(5):
        other = replace(world.spec, run_id=f"other-{i}")
        ids.append(world.backend.submit(world.backend.prepare(world.job, other), f"other-{i}-1"))
    before = len(fake.requests)
    seen = world.backend.observe(ids)
    assert {o.phase for o in seen.values()} == {"running"}
    assert len(fake.requests) - before == 2


def test_a_list_in_pages_that_is_no_longer_kept(
    world: World, fake: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.backends.kubernetes.api._PAGE", 2)
    ids = []
    for i in range(5):
        other = replace(world.spec, run_id=f"other-{i}")
        ids.append(world.backend.submit(world.backend.prepare(world.job, other), f"other-{i}-1"))
    assert {o.phase for o in world.backend.observe(ids).values()} == {"running"}
    answer, told = fake.answer, []

    def expires_once(method: str, url: str, body: dict | None) -> tuple[int, dict]:
        if "continue=" in url and not told:
            told.append(url)
            return 410, {"kind": "Status", "reason": "Expired", "message": "too old"}
        return answer(method, url, body)

    monkeypatch.setattr(fake, "answer", expires_once)
    assert {o.phase for o in world.backend.observe(ids).values()} == {"running"}
    assert told


def test_a_watch_from_a_version_that_is_no_longer_kept_lists_again(
    world: World, fake: FakeKube
) -> None:
    identifier = world.submit()
    world.see(identifier)
    for oldest, answer in ((10**6, None), (0, Fault(410, "Expired", "too old resource version"))):
        fake.oldest = oldest
        fake.faults = [answer] if answer else []
        began = time.monotonic()
        world.backend.wait(30.0, identifier)
        assert time.monotonic() - began < 5
        assert world.see(identifier).phase == "running"


@pytest.mark.parametrize("status", [403, 500])
def test_without_the_right_to_watch_the_time_passes(
    world: World, fake: FakeKube, status: int
) -> None:
    """A Role of an older version, or a server that cannot serve now: no busy loop."""
    identifier = world.submit()
    world.see(identifier)
    fake.faults = [Fault(status, "Forbidden", "jobs.batch is forbidden: cannot watch")]
    began = time.monotonic()
    world.backend.wait(0.6, identifier)
    assert time.monotonic() - began >= 0.6
    assert world.see(identifier).phase == "running"


def test_all_runs_of_a_process_share_one_connection(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.backends.base import load_backend

    one = load_backend("kubernetes", tmp_path)
    assert load_backend("kubernetes", tmp_path / "other") is one
    copy = tmp_path / "another"
    copy.write_bytes(fake.kubeconfig.read_bytes())
    monkeypatch.setenv("KUBECONFIG", str(copy))
    assert load_backend("kubernetes", tmp_path) is not one


def test_why_a_job_gets_no_pods(
    world: World, fake: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.backends.kubernetes.reading.CREATED_S", -1.0)
    monkeypatch.setattr(fake, "_start_pod", lambda *_: None)
    identifier = world.submit()
    name = identifier.key
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Job", "name": name},
        "reason": "FailedCreate",
        "message": 'pods "x" is forbidden: exceeded quota: none',
    }
    fake.put("events", event)
    seen = world.see(identifier)
    assert (seen.phase, "exceeded quota" in seen.detail) == ("pending", True)


def test_without_a_kubeconfig(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.backends.kubernetes.api import ServerApi

    for value, words in (
        (str(tmp_path / "none"), "not found"),
        (f"{tmp_path}/a:{tmp_path}/b", "several files"),
    ):
        monkeypatch.setenv("KUBECONFIG", value)
        with pytest.raises(UserError, match=words):
            KubernetesBackend(ServerApi).observe([JobRef("n/j-1", "j-1")])
