"""The shipped controller Deployment looks after runs, with the shipped Role, in the cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from orchestrator.controller import loop
from orchestrator.controller.lease import is_live, newest
from orchestrator.operations import actions
from tests.harness.kube_cluster import MANIFESTS, NAMESPACE, Cluster
from tests.harness.kube_runs import KubeBench, run_events
from tests.harness.kube_s3 import s3_for_pods
from tests.harness.runs import ROOT, Driven
from tests.harness.weed import Weed

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600)]

# Slow steps: it may take two seconds until a deletion has become a signal.
STEP_S = 1.0


def deployment(bench: KubeBench, env: list[dict[str, Any]]) -> dict[str, Any]:
    """The shipped manifest, with this machine's Python in the tests' image."""
    found = yaml.safe_load((MANIFESTS / "controller.yaml").read_text())
    found["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "qvl-orchestrate"
    pod = found["spec"]["template"]["spec"]
    [main] = pod["containers"]
    settings = bench.settings()
    main["image"] = settings["image"]
    main["command"][0] = bench.job().python
    main["env"] += [{"name": k, "value": v} for k, v in settings["env"].items()] + env
    pod["securityContext"] |= {"runAsUser": os.getuid(), "runAsNonRoot": os.getuid() != 0}
    for index, mount in enumerate(settings["volumes"]):
        name = f"v{index}"
        main["volumeMounts"].append({"name": name, "mountPath": mount["path"]})
        pod["volumes"].append({"name": name, "hostPath": {"path": mount["host_path"]}})
    return found


def server_address(cluster: Cluster) -> list[dict[str, Any]]:
    """For clusters without Services: where pods find the API server."""
    view = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    url = urlsplit(view["clusters"][0]["cluster"]["server"])
    return [
        {"name": "KUBERNETES_SERVICE_HOST", "value": url.hostname},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(url.port)},
    ]


def test_the_deployment_looks_after_a_run_whose_submitter_has_gone(
    bench: KubeBench, calm: tuple[Any, ...]
) -> None:
    cluster = bench.cluster
    run = bench.submit(bench.job(kubernetes={"controller": "deployment"}), step_s=STEP_S)
    try:
        cluster.apply(deployment(bench, server_address(cluster)))
        for number in (2, 3):
            cluster.wait(lambda: run.curve(0) and max(run.curve(0)) >= 3 * (number - 1))
            [pod] = cluster.wait(lambda: cluster.running(run.run.run_id))
            cluster.delete_pod(pod["metadata"]["name"])
            # Killed at the same time: it is started again, on another host as far as it knows.
            labels = ("-l", "app.kubernetes.io/component=controller")
            cluster.kubectl("delete", "pod", *labels, "--grace-period=0", "--force", "--wait=false")
            name = f"{run.run.run_id}-{number}"
            cluster.wait(
                lambda: any(j["metadata"]["name"] == name for j in cluster.get("jobs")), 150.0
            )
        cluster.wait(lambda: run.storage.local_path("done.json").exists(), 90.0)
    finally:
        cluster.kubectl("delete", "deployment", "--all")
    assert run.outcome() == calm
    assert run.look().row["attempt"] == 3


def test_a_job_of_its_own_looks_after_a_run_whose_submitter_has_gone(
    bench: KubeBench, calm: tuple[Any, ...]
) -> None:
    """Evicted, then killed, each time with the run: another pod of its Job goes on."""
    cluster = bench.cluster
    env = {e["name"]: e["value"] for e in server_address(cluster)}
    settings = {"controller": "job", "env": {**bench.settings()["env"], **env}}
    run = bench.submit(bench.job(kubernetes=settings), step_s=STEP_S)
    run_id = run.run.run_id
    assert f"Job {NAMESPACE}/{run_id}-controller was started" in loop.leave_controller(run.run)
    labels = ("-l", "app.kubernetes.io/component=controller")
    for number, how in ((2, ()), (3, ("--grace-period=0", "--force"))):
        cluster.wait(lambda: run.curve(0) and max(run.curve(0)) >= 3 * (number - 1), 120.0)
        [pod] = cluster.wait(lambda: cluster.running(run_id))
        cluster.delete_pod(pod["metadata"]["name"])
        cluster.kubectl("delete", "pod", *labels, *how, "--wait=false")
        name = f"{run_id}-{number}"
        cluster.wait(lambda: any(j["metadata"]["name"] == name for j in cluster.get("jobs")), 150.0)
    cluster.wait(lambda: run.storage.local_path("done.json").exists(), 90.0)
    cluster.wait(lambda: over(bench, f"{run_id}-controller"), 30.0)
    assert run.outcome() == calm
    assert run.look().row["attempt"] == 3
    actions.remove(run.run)
    cluster.wait(lambda: not cluster.get("jobs", "-l", f"qvl-orchestrate/run={run_id}"))


def over(bench: KubeBench, name: str) -> bool:
    """True once a Job is complete."""
    [job] = bench.cluster.get("jobs", name)
    return any(c["type"] == "Complete" for c in job["status"].get("conditions", ()))


def staying(bench: KubeBench, run: Driven, name: str) -> subprocess.Popen[bytes]:
    """A controller of the run that knows nothing but its directory."""
    argv = [sys.executable, "-m", "orchestrator.controller", "--stay", run.run.storage.uri]
    environ = {**os.environ, "QVL_STATE_DIR": str(bench.folder / name)}
    return subprocess.Popen(argv, env=environ, cwd=ROOT, start_new_session=True)


def test_two_controllers_and_a_lease_decides(bench: KubeBench, calm: tuple[Any, ...]) -> None:
    """The one that holds the run is killed at a preemption, the other one told to go later."""
    cluster = bench.cluster
    run = bench.submit(step_s=STEP_S)
    run_id = run.run.run_id
    controllers = {n: staying(bench, run, n) for n in ("one", "two")}
    by_pid = {p.pid: n for n, p in controllers.items()}
    struck: list[subprocess.Popen[bytes]] = []
    try:
        for number, blow in ((2, signal.SIGKILL), (3, signal.SIGTERM)):
            cluster.wait(lambda: run.curve(0) and max(run.curve(0)) >= 3 * (number - 1))
            [pod] = cluster.wait(lambda: cluster.running(run_id))
            held = newest(run.storage)
            assert is_live(held, run.run.clock.now())
            assert held is not None
            cluster.delete_pod(pod["metadata"]["name"])
            holder = controllers[by_pid[held.pid]]
            holder.send_signal(blow)
            struck.append(holder)
            assert holder.wait(30.0) == (-9 if blow == signal.SIGKILL else 143)
            if blow == signal.SIGTERM:
                assert newest(run.storage).released  # type: ignore[union-attr]
            fresh = staying(bench, run, f"after-{number}")
            controllers[f"after-{number}"] = fresh
            by_pid[fresh.pid] = f"after-{number}"
            name = f"{run_id}-{number}"
            cluster.wait(lambda: name in {j["metadata"]["name"] for j in cluster.get("jobs")})
        cluster.wait(lambda: run.storage.local_path("done.json").exists(), 90.0)
        left = [p for p in controllers.values() if p not in struck]
        assert [p.wait(30.0) for p in left] == [0, 0]
    finally:
        for process in controllers.values():
            process.kill()
            process.wait()
    assert run.outcome() == calm
    assert run.look().row["attempt"] == 3
    assert len(run_events(run, "requeued")) == 2


def test_run_directory_on_s3_and_a_user_that_is_not_root(
    bench: KubeBench, calm: tuple[Any, ...], weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_for_pods(bench, weed, monkeypatch) as settings:
        more = {**settings, "run_as_user": 10001, "fs_group": 10001}
        run = bench.submit(bench.job(kubernetes=more), step_s=STEP_S)
        run.until_step(3)
        [pod] = bench.cluster.running(run.run.run_id)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        run.notify()
        end = run.drive(seconds=150.0)
        assert end.state == "SUCCEEDED", end.row
        assert end.row["attempt"] == 2
        assert run.outcome() == calm
