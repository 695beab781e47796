"""The shipped controller Deployment looks after runs, with the shipped Role, in the cluster."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from orchestrator.cli import controller as _controller  # noqa: F401 - the command it runs
from tests.harness.kube_cluster import MANIFESTS, NAMESPACE, Cluster
from tests.harness.kube_runs import KubeBench
from tests.harness.weed import Weed, missing

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


@contextmanager
def forwarded(address: str, port: int) -> Iterator[None]:
    """The same port on another address of this machine."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as inner:
                back = threading.Thread(target=pump, args=(inner, self.request))
                back.start()
                pump(self.request, inner)
                back.join()

    with socketserver.ThreadingTCPServer((address, port), Forward) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass everything on; at its end, end the other side too."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def test_run_directory_on_s3_and_a_user_that_is_not_root(
    bench: KubeBench, calm: tuple[Any, ...], weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ.get("QVL_TEST_HOST_ADDRESS")
    if address is None or missing():
        pytest.skip("QVL_TEST_HOST_ADDRESS does not say where pods reach this machine")
    endpoint = f"http://{address}:{weed.port}"
    weed.use(monkeypatch, endpoint)
    bench.folder.chmod(0o755)
    bench.uri = "s3://qvl-test/k8s"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "qvl-storage", "namespace": NAMESPACE},
        "stringData": weed.environment(endpoint),
    }
    bench.cluster.apply(secret)
    more = {"env_from_secrets": ["qvl-storage"], "run_as_user": 10001, "fs_group": 10001}
    with forwarded(address, weed.port):
        run = bench.submit(bench.job(kubernetes=more), step_s=STEP_S)
        run.until_step(3)
        [pod] = bench.cluster.running(run.run.run_id)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        run.notify()
        end = run.drive(seconds=150.0)
        assert end.state == "SUCCEEDED", end.row
        assert end.row["attempt"] == 2
        assert run.outcome() == calm
    bench.cluster.kubectl("delete", "secret", "qvl-storage")
