"""A real Kubernetes for tests: the one that a kubeconfig names, or that a command brings up.

QVL_TEST_KUBECONFIG      a cluster that is there (kind, minikube, a real one)
QVL_TEST_CLUSTER_UP      else: a command that brings one up and prints `export KUBECONFIG=...`
QVL_TEST_CLUSTER_DOWN    and the one that ends it
QVL_TEST_IMAGE           an image that the nodes have, with this program in it, or with nothing
                         but a shell: this machine's /usr, checkout and virtual environment are
                         mounted into it, so that nodes must see this machine's file system
QVL_TEST_NODE_PIDS       folder with a file a node, holding the pid whose end is the node's loss
QVL_TEST_HOST_ADDRESS    address of this machine, as pods reach it (for the S3 server)
QVL_TEST_POD_ROUTES      `NET via ADDRESS, ...`: routes to the pods that this machine still lacks
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UP_S = 300
CLIENT_S = 60
NAMESPACE = "qvl-test"
MANIFESTS = Path(__file__).resolve().parents[2] / "k8s"


def missing() -> str | None:
    """Why there is no cluster to test on, with the cure; None if there is."""
    if not (os.environ.get("QVL_TEST_KUBECONFIG") or os.environ.get("QVL_TEST_CLUSTER_UP")):
        return "no cluster: QVL_TEST_KUBECONFIG=FILE or QVL_TEST_CLUSTER_UP=COMMAND names one"
    if not os.environ.get("QVL_TEST_IMAGE"):
        return "QVL_TEST_IMAGE does not name an image (see tests/harness/kube_cluster.py)"
    return None


def up() -> Cluster:
    """The cluster, reachable; brought up if need be."""
    named = os.environ.get("QVL_TEST_KUBECONFIG")
    if named:
        return Cluster(Path(named), os.environ["PATH"], ours=False)
    done = subprocess.run(
        shlex.split(os.environ["QVL_TEST_CLUSTER_UP"]),
        capture_output=True,
        text=True,
        timeout=UP_S,
        check=False,
    )
    assert done.returncode == 0, f"the cluster does not come up: {done.stderr[-2000:]}"
    for route in filter(None, os.environ.get("QVL_TEST_POD_ROUTES", "").split(",")):
        subprocess.run(["ip", "route", "replace", *route.split()], check=True)
    said = dict(re.findall(r"(KUBECONFIG|PATH)=(\S+)", done.stdout))
    path = said.get("PATH", "").replace("$PATH", os.environ["PATH"]) or os.environ["PATH"]
    return Cluster(Path(said["KUBECONFIG"]), path, ours=True)


@dataclass
class Cluster:
    """One cluster, looked at with kubectl, as an administrator would."""

    kubeconfig: Path
    path: str
    ours: bool
    account: Path = Path()
    """A kubeconfig with the rights of the shipped Role."""

    def down(self) -> None:
        """End it, if it was brought up here."""
        command = os.environ.get("QVL_TEST_CLUSTER_DOWN")
        if self.ours and command:
            subprocess.run(shlex.split(command), capture_output=True, timeout=UP_S, check=False)

    def kubectl(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """Output of kubectl in the tests' namespace. AssertionError if it fails."""
        program = shutil.which("kubectl", path=self.path)
        assert program is not None, "kubectl is not on PATH"
        done = subprocess.run(
            [program, f"--kubeconfig={self.kubeconfig}", "-n", NAMESPACE, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=CLIENT_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, kind: str, *argv: str) -> list[dict[str, Any]]:
        """Objects of the tests' namespace."""
        found = json.loads(self.kubectl("get", kind, "-o", "json", *argv))
        items: list[dict[str, Any]] = found.get("items", [found])
        return items

    def apply(self, *objects: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "-f", "-", stdin=text)

    def version(self) -> tuple[int, int]:
        """Major and minor version of the server."""
        found = json.loads(self.kubectl("get", "--raw", "/version"))
        return int(found["major"]), int(re.sub(r"\D", "", found["minor"]))

    # --- pods

    def pods(self, run_id: str) -> list[dict[str, Any]]:
        """Pods of a run's attempts, oldest first."""
        chosen = f"qvl-orchestrate/run={run_id},qvl-orchestrate/submission"
        found = self.get("pods", "-l", chosen)
        return sorted(found, key=lambda p: p["metadata"]["creationTimestamp"])

    def running(self, run_id: str) -> list[dict[str, Any]]:
        """Pods of a run that run and are not being deleted."""
        return [
            p
            for p in self.pods(run_id)
            if p["status"]["phase"] == "Running" and "deletionTimestamp" not in p["metadata"]
        ]

    def delete_pod(self, name: str) -> None:
        self.kubectl("delete", "pod", name, "--wait=false")

    # --- nodes

    def nodes(self) -> list[str]:
        return [n["metadata"]["name"] for n in self.get("nodes")]

    def pid_of(self, node: str) -> int | None:
        """The one process whose end is the loss of the node, if this cluster says so."""
        folder = os.environ.get("QVL_TEST_NODE_PIDS")
        if folder is None:
            return None
        with suppress(OSError, ValueError):
            return int((Path(folder) / node).read_text())
        return None

    def lose(self, node: str) -> None:
        pid = self.pid_of(node)
        assert pid is not None, "this cluster cannot lose a node"
        os.kill(pid, signal.SIGKILL)

    def revive(self) -> None:
        """Start again what was lost, and wait until all nodes are ready."""
        up()

        def ready() -> bool:
            return all(
                c["status"] == "True"
                for n in self.get("nodes")
                for c in n["status"]["conditions"]
                if c["type"] == "Ready"
            )

        self.wait(ready, 120.0)

    # --- life

    def prepare(self) -> str:
        """The namespace with what administrators install; returns the controller's kubeconfig."""
        self.kubectl("create", "namespace", NAMESPACE, check=False)
        self.wait(lambda: self.get("serviceaccounts", "default"))
        self.kubectl("apply", "-f", str(MANIFESTS / "rbac.yaml"))
        self.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": "qvl-test-high"},
                "value": 1000,
            }
        )
        return self.account_kubeconfig("qvl-orchestrate")

    def account_kubeconfig(self, account: str) -> str:
        """A kubeconfig with the rights of a service account, and no other."""
        token = self._token(account)
        view = json.loads(self.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
        view["users"] = [{"name": "u", "user": {"token": token}}]
        cluster = view["clusters"][0]["name"]
        view["contexts"] = [
            {"name": "c", "context": {"cluster": cluster, "user": "u", "namespace": NAMESPACE}}
        ]
        view["current-context"] = "c"
        return json.dumps(view)

    def _token(self, account: str) -> str:
        text = self.kubectl("create", "token", account, "--duration=4h", check=False).strip()
        if text.count(".") == 2:
            return text
        # Servers before 1.24 keep a token in a Secret.
        import base64

        def secret() -> str:
            found = self.get("serviceaccounts", account)[0].get("secrets") or []
            return str(found[0]["name"]) if found else ""

        name = self.wait(secret)
        return base64.b64decode(self.get("secrets", name)[0]["data"]["token"]).decode()

    def clear(self) -> None:
        """End everything in the namespace, at once."""
        for kind in ("jobs", "configmaps", "pods", "resourcequotas", "secrets"):
            chosen = ("-l", "app.kubernetes.io/managed-by=qvl-orchestrate")
            if kind in ("pods", "resourcequotas", "jobs"):
                chosen = ("--all",)
            at_once = ("--grace-period=0", "--force", "--wait=false")
            self.kubectl("delete", kind, *chosen, *at_once, check=False)
        for node in self.nodes():
            self.kubectl("uncordon", node, check=False)
        self.wait(lambda: not self.get("pods") and not self.get("jobs"), 120.0)

    def wait(self, what: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Until `what` gives something true; returns it."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, "the cluster does not get there"
            time.sleep(0.3)
        return found
