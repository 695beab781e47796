"""Controllers of runs on a pretended server: found, leased, missed; what is stuck taken back."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.api import ServerApi
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.cli.services.follow import leave_controller
from orchestrator.clock import SystemClock
from orchestrator.contract.resolved import Resources
from orchestrator.controller import loop
from orchestrator.controller.loop import Rounds
from orchestrator.controller.status_rows import public_row
from orchestrator.errors import Unreachable, UserError
from orchestrator.operations import status
from orchestrator.registry.store import Registry
from orchestrator.run_directory import attempts
from orchestrator.storage.posix import PosixStorage
from tests.harness.clock import FakeClock
from tests.harness.fake_kube import FakeKube, Fault
from tests.harness.kube_runs import run_events
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
        kubernetes={"run_as_user": os.getuid(), "image": "example.org/qvl:1"},
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
    row = status.refresh(run.run.registry, clock, entry).row
    assert "no controller since " in row["next"]
    assert public_row(row, clock.now())["attended"] is False
    rounds = Rounds(run.run.registry, SystemClock())
    reports(rounds)
    here = SystemClock()
    entry = replace(run.run.registry.find(run.run.run_id), seen_at=0.0)
    assert status.refresh(run.run.registry, here, entry).row["next"] is None
    rounds.close()
    said = status.refresh(run.run.registry, here, entry).row["next"]
    assert said.startswith("no controller since ")
    assert "UTC" in said


def choose(run: Driven, **settings: Any) -> None:
    """Change the run's `kubernetes:` block."""
    job = run.run.job()
    changed = replace(job, kubernetes={**job.kubernetes, **settings})
    attempts.write_job(run.storage, changed)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs for which a process would have been left."""
    found: list[str] = []
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: found.append(run_id))
    return found


def controllers_of(fake: FakeKube) -> list[dict[str, Any]]:
    return [j for j in fake.all("jobs") if j["metadata"]["name"].endswith("-controller")]


def test_the_site_chooses_who_looks_after_a_run(
    run: Driven, fake: FakeKube, started: list[str]
) -> None:
    assert "left on this machine" in loop.leave_controller(run.run)
    assert started == [run.run.run_id]
    for kind, words in (
        ("none", "none was started: `qvl-orchestrate controller once`"),
        ("deployment", "is the Deployment of k8s/controller.yaml there?"),
    ):
        choose(run, controller=kind)
        assert words in loop.leave_controller(run.run)
    assert not controllers_of(fake)
    choose(run, controller="job")
    assert f"Job mine/{run.run.run_id}-controller was started" in loop.leave_controller(run.run)
    assert loop.leave_controller(run.run)
    assert len(controllers_of(fake)) == 1
    assert started == [run.run.run_id]


def test_a_live_controller_is_left_alone(run: Driven, fake: FakeKube, started: list[str]) -> None:
    rounds = Rounds(run.run.registry, SystemClock())
    reports(rounds)
    for kind in ("process", "job", "deployment", "none"):
        choose(run, controller=kind)
        assert loop.leave_controller(run.run) == ""
    assert (started, controllers_of(fake)) == ([], [])
    rounds.close()


def test_the_site_s_own_controller_is_waited_for(run: Driven) -> None:
    choose(run, controller="deployment")
    rounds = Rounds(run.run.registry, SystemClock())
    late = threading.Timer(0.7, reports, [rounds])
    late.start()
    assert loop.leave_controller(run.run, 20.0) == ""
    late.join()
    rounds.close()


def test_a_controller_s_job_has_what_it_needs_and_no_more(run: Driven, fake: FakeKube) -> None:
    volumes = [{"claim": "runs", "path": "/runs"}]
    settings = {"node_selector": {"spot": "true"}, "priority_class": "low"}
    choose(
        run, controller="job", volumes=volumes, env={"A": "$(B) {{ c }}"}, queue="team", **settings
    )
    loop.leave_controller(run.run)
    [job] = controllers_of(fake)
    pod = job["spec"]["template"]["spec"]
    [main] = pod["containers"]
    assert main["command"][-3:] == ["orchestrator.controller", "--stay", run.run.storage.uri]
    assert (pod["restartPolicy"], pod["serviceAccountName"]) == ("OnFailure", "qvl-orchestrate")
    assert {"nodeSelector", "priorityClassName", "tolerations"}.isdisjoint(pod)
    assert "nvidia.com/gpu" not in json.dumps(main["resources"])
    assert {"name": "A", "value": "$$(B) {{ c }}"} in main["env"]
    assert "QVL_SPEC" not in {e["name"] for e in main["env"]}
    assert {"name": "volume-0", "mountPath": "/runs"} in main["volumeMounts"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert job["metadata"]["labels"]["qvl-orchestrate/run"] == run.run.run_id
    assert job["metadata"]["ownerReferences"][0]["name"] == run.run.run_id


def test_a_controller_s_job_is_no_attempt(run: Driven, fake: FakeKube) -> None:
    choose(run, controller="job")
    loop.leave_controller(run.run)
    run.hurry()
    before = run.look().row["attempt"]
    first = f"{run.run.run_id}-1"
    fake.answer("DELETE", f"/api/v1/namespaces/mine/pods/{pod_of(fake, first)}", None)
    run.drive(lambda _: any(j["metadata"]["name"].endswith("-2") for j in fake.all("jobs")))
    assert len(controllers_of(fake)) == 1, "a new attempt leaves it alone"
    assert before == 0


def pod_of(fake: FakeKube, job: str) -> str:
    found = [p for p in fake.all("pods") if p["metadata"]["labels"]["job-name"] == job]
    return str(found[0]["metadata"]["name"])


def test_a_controller_s_job_that_is_over_is_started_anew(run: Driven, fake: FakeKube) -> None:
    choose(run, controller="job")
    loop.leave_controller(run.run)
    [first] = controllers_of(fake)
    first["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
    fake.put("jobs", first)
    loop.leave_controller(run.run)
    [second] = controllers_of(fake)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]


def test_a_site_s_controller_template_is_checked(
    run: Driven, fake: FakeKube, tmp_path: Path
) -> None:
    from orchestrator.resources import resource

    folder = tmp_path / "site" / "k8s"
    folder.mkdir(parents=True)
    ours = resource("k8s/controller-job.yaml.j2").read_text()
    mine = folder / "controller-job.yaml.j2"
    choose(run, controller="job", templates_dir=str(folder.parent))
    mine.write_text(ours.replace("OnFailure", "Never"))
    with pytest.raises(UserError, match="restartPolicy is Never, not OnFailure"):
        loop.leave_controller(run.run)
    mine.write_text(
        '{# qvl-template api=1 #}\n{% extends "k8s/controller-job.yaml.j2" %}\n'
        "{% block scheduling %}\n      priorityClassName: {{ kubernetes.controller }}\n"
        "{% endblock %}\n"
    )
    loop.leave_controller(run.run)
    [job] = controllers_of(fake)
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "job"


def test_a_quota_of_jobs_is_waited_for(
    run: Driven, fake: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the end of the run's controller: the same submission is handed over later."""
    run.hurry()
    run.look()
    fake.answer(
        "DELETE", f"/api/v1/namespaces/mine/pods/{pod_of(fake, f'{run.run.run_id}-1')}", None
    )

    def full(*_: Any, **__: Any) -> None:
        raise Fault(403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: few')

    real = fake._create
    monkeypatch.setattr(fake, "_create", full)
    step = run.drive(lambda s: "exceeded quota: few" in (s.row["message"] or ""))
    assert step.state == "QUEUED"
    monkeypatch.setattr(fake, "_create", real)
    assert run.look().row["backend_job_id"].endswith("-2")


def test_a_submission_stands_though_its_controller_is_refused(
    run: Driven, fake: FakeKube, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose(run, controller="job")
    monkeypatch.setattr(fake, "_create", lambda *_, **__: forbid())
    leave_controller(run.run)
    assert "no controller could be started: the cluster refuses the Job" in capsys.readouterr().err


@pytest.mark.parametrize("letters", [1, 39, 40])
def test_every_name_that_is_derived_fits(
    fake: FakeKube, tmp_path: Path, started: list[str], letters: int
) -> None:
    """`<run>-controller` of a name of 39 letters once had 64: no controller, and exit code 0."""
    bench = Bench(tmp_path / "bench")
    name = "n" * letters
    spec = {"run_as_user": os.getuid(), "image": "example.org/qvl:1", "controller": "job"}
    job = replace(bench.job(), name=name, backend="kubernetes", kubernetes=spec)
    job = replace(job, resources=Resources(nodes=2, gpus_per_node=1))
    run = bench.submit(job)
    mine = [o["metadata"] for kind in ("jobs", "configmaps") for o in fake.all(kind)]
    kept = [meta["name"] for meta in mine]
    assert len(kept) == 3
    assert all(len(text) <= 63 for meta in mine for text in meta["labels"].values())
    assert all(len(text) <= 63 for text in kept)
    assert any(text.startswith(f"{run.run.run_id}-contr") for text in kept)
    assert f"{run.run.run_id}-1" in kept


def test_a_name_that_does_not_fit_is_refused_before_anything_is_made(
    fake: FakeKube, run: Driven
) -> None:
    spec = replace(attempts.read_submissions(run.storage)[-1].spec, run_id="n" * 62)
    before = len(fake.requests)
    with pytest.raises(UserError, match="letters, and Kubernetes takes 63"):
        run.run.backend.prepare(run.run.job(), spec)
    assert len(fake.requests) == before


def test_the_controller_is_first_and_without_it_nothing_is_submitted(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "bench")
    spec = {"run_as_user": os.getuid(), "image": "example.org/qvl:1", "controller": "job"}
    job = replace(bench.job(), backend="kubernetes", kubernetes=spec)
    job = replace(job, resources=Resources(nodes=1, gpus_per_node=2))
    real = fake._create

    def no_controllers(namespace: str, kind: str, body: Any, *, dry_run: bool) -> Any:
        if kind == "jobs" and body["metadata"]["name"].endswith("-controller"):
            forbid()
        return real(namespace, kind, body, dry_run=dry_run)

    monkeypatch.setattr(fake, "_create", no_controllers)
    with pytest.raises(Unreachable, match="so nothing was submitted: the cluster refuses") as said:
        bench.submit(job)
    assert said.value.exit_code == 69
    assert [fake.all(kind) for kind in ("jobs", "pods", "configmaps", "secrets")] == [[]] * 4
    assert bench.registry.runs() == []
    monkeypatch.setattr(fake, "_create", real)
    run = bench.submit(job)
    first, _ = (j["metadata"]["name"] for j in fake.all("jobs"))
    assert first.endswith("-controller")
    assert run.look().state in ("QUEUED", "STARTING", "RUNNING")


def test_a_controller_that_is_there_before_the_first_submission_waits_for_it(run: Driven) -> None:
    for file in (run.directory / "submissions").iterdir():
        file.unlink()
    step = run.look()
    assert (step.state, step.settled) == ("QUEUED", False)


def test_a_run_that_waits_for_the_site_s_controller_says_so(
    run: Driven, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE_S", 0.1)
    for kind, attended in (("process", True), ("none", False), ("deployment", False)):
        choose(run, controller=kind)
        assert leave_controller(run.run) is attended
    rounds = Rounds(run.run.registry, SystemClock())
    reports(rounds)
    assert leave_controller(run.run) is True
    rounds.close()


def forbid() -> None:
    raise Fault(403, "Forbidden", "jobs.batch is forbidden: you cannot create")


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
        kubernetes={"run_as_user": os.getuid(), "image": "example.org/qvl:1"},
    )
    run = bench.submit(job)
    assert [s["stringData"] for s in fake.all("secrets")] == [{"WORD": "swordfish"}]
    [sent] = fake.all("jobs")
    fake.answer("DELETE", f"/apis/batch/v1/namespaces/mine/jobs/{sent['metadata']['name']}", None)
    assert run.drive().state == "CANCELLED"
    assert fake.all("secrets") == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("where", ["server", "storage"])
def test_a_controller_killed_at_any_step_of_a_requeue(
    fake: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, late: bool
) -> None:
    """At each request to the server, at each file that is created: one Job a submission, and
    no submission is skipped.
    """
    monkeypatch.setattr(fake, "save_s", 0.0)
    owner, name = (ServerApi, "_ask") if where == "server" else (PosixStorage, "create")
    real, step = getattr(owner, name), 0
    while True:
        step += 1
        run = preempted(fake, tmp_path / f"bench-{step}")
        calls = iter(range(1, 10**6))

        def deadly(*args: Any, _calls: Any = calls, _step: int = step, **kwargs: Any) -> Any:
            mine = next(_calls) == _step
            if mine and not late:
                raise Killed
            try:
                return real(*args, **kwargs)
            finally:
                if mine:
                    raise Killed

        monkeypatch.setattr(owner, name, deadly)
        killed = False
        try:
            run.look()
        except Killed:
            killed = True
        finally:
            monkeypatch.setattr(owner, name, real)
        again = replace(run.run, backend=KubernetesBackend(ServerApi))
        Driven(again).drive(lambda s: str(s.row["backend_job_id"]).endswith("-2"))
        more = Driven(again).look()
        assert more.row["backend_job_id"].endswith("-2")
        found = {j["metadata"]["name"] for j in fake.all("jobs")}
        mine = {n.removeprefix(run.run.run_id) for n in found if n.startswith(run.run.run_id)}
        assert {"-2"} <= mine <= {"-1", "-2"}, step
        assert [s.number for s in attempts.read_submissions(run.storage)] == [1, 2]
        assert len(run_events(run, "requeued")) <= 1
        if not killed:
            break
    assert step > (4 if where == "server" else 2), "it has more steps than that"


def preempted(fake: FakeKube, folder: Path) -> Driven:
    """A run whose only pod was taken away, and has gone."""
    bench = Bench(folder)
    job = replace(
        bench.job(),
        backend="kubernetes",
        resources=Resources(nodes=1, gpus_per_node=2),
        kubernetes={"run_as_user": os.getuid(), "image": "example.org/qvl:1"},
    )
    run = bench.submit(job)
    run.hurry()
    name = f"{run.run.run_id}-1"
    run.look()
    fake.answer("DELETE", f"/api/v1/namespaces/mine/pods/{pod_of(fake, name)}", None)
    fake.all("pods")
    sent = next(j for j in fake.all("jobs") if j["metadata"]["name"] == name)
    sent["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "x"}]
    fake.put("jobs", sent)
    job = run.job()
    seen = run.run.backend.observe([job])[job]  # type: ignore[list-item,index]
    assert seen.phase == "gone", seen
    return run
