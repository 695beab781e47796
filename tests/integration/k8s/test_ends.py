"""Cancelled, or unable to start: said in words, and nothing is left in the cluster."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.controller.reconcile import hand_over
from orchestrator.errors import UserError
from orchestrator.operations import actions
from orchestrator.operations.submit import write_secrets
from orchestrator.run_directory import attempts
from tests.harness.kube_runs import KubeBench, codes
from tests.harness.runs import Driven

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600)]

STEP_S = 0.15


def nothing_left(bench: KubeBench, run: Driven) -> None:
    bench.cluster.wait(lambda: not bench.cluster.get("jobs"))
    # The node removes the pod in its own time; that was seen to take more than a minute.
    bench.cluster.wait(lambda: not bench.cluster.pods(run.run.run_id), 150.0)


def test_a_cancel_saves_and_stays_cancelled(bench: KubeBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    actions.cancel(run.run)
    assert run.drive().state == "CANCELLED"
    assert codes(run, 1) == [75]
    assert run.look().state == "CANCELLED"
    nothing_left(bench, run)


def test_a_job_deleted_by_hand_is_a_cancel(bench: KubeBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    bench.cluster.kubectl("delete", "jobs", "-l", f"qvl-orchestrate/run={run.run.run_id}")
    assert run.drive().state == "CANCELLED"
    assert attempts.has_tombstone(run.storage)
    nothing_left(bench, run)


def test_an_image_that_cannot_be_had(bench: KubeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.backends.kubernetes.reading.STUCK_S", 4.0)
    image = {"image": "registry.invalid/no/such:1", "image_pull_policy": "IfNotPresent"}
    run = bench.submit(bench.job(kubernetes=image))
    step = run.drive(lambda s: "image cannot be had" in (s.row["message"] or ""))
    end = run.drive()
    assert end.state == "HELD"
    assert end.row["reason"] in ("image", "unstartable")
    assert "registry.invalid/no/such:1" in end.row["message"], (step.row, end.row)
    nothing_left(bench, run)
    again = run.look()
    assert again.state == "HELD", "a Job that was taken back is no cancel"
    assert "registry.invalid/no/such:1" in again.row["message"]


def test_a_quota_is_waited_for(bench: KubeBench) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    bench.cluster.apply(quota)
    run = bench.submit()
    waiting = run.drive(lambda s: "quota" in (s.row["message"] or ""), seconds=60.0)
    assert waiting.state == "QUEUED"
    assert "pods=1" in waiting.row["message"]
    bench.cluster.kubectl("delete", "resourcequota", "none")
    assert run.drive(seconds=120.0).state == "SUCCEEDED"


def test_a_quota_of_jobs_is_waited_for(bench: KubeBench) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-jobs"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    bench.cluster.apply(quota)
    bench.cluster.wait(lambda: "used" in bench.cluster.get("resourcequota", "no-jobs")[0]["status"])
    run = bench.submit()
    waiting = run.drive(lambda s: "quota" in (s.row["message"] or ""), seconds=60.0)
    assert (waiting.state, bench.cluster.get("jobs")) == ("QUEUED", [])
    bench.cluster.kubectl("delete", "resourcequota", "no-jobs")
    assert run.drive(seconds=120.0).state == "SUCCEEDED"


def test_no_node_has_room(bench: KubeBench) -> None:
    run = bench.submit(bench.job(kubernetes={"node_selector": {"no": "such"}}))
    waiting = run.drive(lambda s: "no node has room" in (s.row["message"] or ""))
    assert waiting.state == "QUEUED"
    actions.cancel(run.run)
    assert run.drive().state == "CANCELLED"


SIDECAR = """{# qvl-template api=1 #}
{% extends "k8s/job.yaml.j2" %}
{% block containers %}
        - {name: monitor, image: {{ image }}, command: [sleep, "600"]}
{% endblock %}
"""


def test_a_container_of_the_site_does_not_keep_what_the_run_has_left(
    bench: KubeBench, calm: tuple[Any, ...], tmp_path: Path
) -> None:
    """After the end and after crashes: its Job is ended, and only its own ending counts."""
    mine = tmp_path / "mine.yaml.j2"
    mine.write_text(SIDECAR)
    job = bench.job(kubernetes={"template": str(mine)})
    run = bench.submit(job)
    end = run.drive(seconds=120.0)
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1), end.row
    assert run.outcome() == calm
    nothing_left(bench, run)
    assert run.look().state == "SUCCEEDED", "a Job that we ended is no cancel"
    crashing = bench.submit(job, crash_at="7:0")
    crashing.hurry()
    end = crashing.drive(seconds=200.0)
    assert (end.state, end.row["reason"]) == ("HELD", "same-error"), end.row
    nothing_left(bench, crashing)


def test_pods_that_cannot_read_their_run_directory(
    bench: KubeBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at submit; where that cannot be seen, the agent's last words are not lost."""
    job = bench.job(kubernetes={"run_as_user": 10001})
    with pytest.raises(UserError, match="the pods run as user 10001") as caught:
        bench.submit(job)
    assert f"kubernetes.run_as_user: {os.getuid()}" in (caught.value.hint or "")
    assert bench.registry.runs() == []
    monkeypatch.setattr(
        "orchestrator.backends.kubernetes.ownership.refuse_other_user", lambda *_: None
    )
    run = bench.submit(job)
    run.hurry()
    seen = run.drive(lambda s: "ermission denied" in (s.row["message"] or ""), seconds=200.0)
    assert seen.row["attempt"] == 0
    monkeypatch.setenv("QVL_STATE_DIR", str(bench.registry.state_dir))
    main(["logs", run.run.run_id])
    assert "ermission denied" in "".join(capsys.readouterr())


def test_killed_for_memory(bench: KubeBench) -> None:
    job = bench.job()
    job = replace(job, resources=replace(job.resources, memory_gb=0.05))
    run = bench.submit(job)
    run.hurry()
    end = run.drive(lambda s: s.settled or s.row["reason"] == "failed (memory)", seconds=90.0)
    assert "memory" in json.dumps(end.row), end.row


def test_submitting_twice_gives_one_job(bench: KubeBench) -> None:
    run = bench.submit(step_s=STEP_S)
    [record] = attempts.read_submissions(run.storage)
    assert str(hand_over(run.run, record)) == str(run.job())
    assert len(bench.cluster.get("jobs")) == 1


def test_a_namespace_that_is_not_there(bench: KubeBench) -> None:
    with pytest.raises(UserError, match=r"nowhere"):
        bench.submit(bench.job(kubernetes={"namespace": "nowhere"}))


def test_secrets_reach_the_ranks_and_nothing_else(bench: KubeBench) -> None:
    value = "swordfish-4711"
    os.environ["QTEST_WORD"] = value
    try:
        run = bench.submit(replace(bench.job(), secrets=("QTEST_WORD",)), step_s=STEP_S)
    finally:
        del os.environ["QTEST_WORD"]
    run.until_step(2)
    [pod] = bench.cluster.running(run.run.run_id)
    environ = bench.cluster.kubectl("exec", pod["metadata"]["name"], "--", "cat", "/proc/1/environ")
    assert f"QTEST_WORD={value}" in environ.split("\0")
    for kind in ("jobs", "pods", "configmaps"):
        assert value not in json.dumps(bench.cluster.get(kind))
    for file in run.directory.rglob("*"):
        assert not file.is_file() or value.encode() not in file.read_bytes(), file
    # A controller elsewhere has no such file: it finds the Secret in the cluster.
    (run.run.registry.state_dir / "secrets" / f"{run.run.run_id}.json").unlink()
    run.notify()
    assert run.drive(seconds=90.0).state == "SUCCEEDED"
    assert run.step is not None
    assert run.step.row["attempt"] == 2
    names = [s["metadata"]["name"] for s in bench.cluster.get("secrets")]
    assert f"{run.run.run_id}-env" not in names
    write_secrets(run.run.registry.state_dir, run.run.run_id, {})


def test_the_container_is_as_locked_up_as_it_says(bench: KubeBench) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(1)
    [pod] = bench.cluster.running(run.run.run_id)
    name = pod["metadata"]["name"]

    def tries(*argv: str) -> bool:
        text = bench.cluster.kubectl("exec", name, "--", *argv, check=False)
        return "yes" in text

    assert tries("sh", "-c", "touch $HOME/x && echo yes")
    assert not tries("sh", "-c", "touch /x && echo yes")
    assert not tries("sh", "-c", "test -e /var/run/secrets/kubernetes.io && echo yes")
    shm = bench.cluster.kubectl("exec", name, "--", "cat", "/proc/mounts")
    [line] = [x for x in shm.splitlines() if " /dev/shm " in x]
    assert line.split()[2] == "tmpfs"
    first = bench.cluster.kubectl("exec", name, "--", "cat", "/proc/1/cmdline")
    assert "orchestrator.agent" in first.split("\0")
    limits = pod["spec"]["containers"][0]["resources"]
    assert limits["requests"]["nvidia.com/gpu"] == limits["limits"]["nvidia.com/gpu"] == "2"


def test_everything_of_a_run_is_found_and_removed(bench: KubeBench) -> None:
    run = bench.submit()
    run_id = run.run.run_id
    assert run.drive(seconds=90.0).state == "SUCCEEDED"
    found = bench.cluster.get("jobs,pods,configmaps", "-l", f"qvl-orchestrate/run={run_id}")
    assert sorted(o["kind"] for o in found) == ["ConfigMap", "Job", "Pod"]
    actions.remove(run.run)
    bench.cluster.wait(
        lambda: not bench.cluster.get("jobs,pods,configmaps", "-l", f"qvl-orchestrate/run={run_id}")
    )
