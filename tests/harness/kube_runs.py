"""Whole runs on a real Kubernetes with the torch-free trainer, driven pass by pass."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.contract import layout
from orchestrator.contract.resolved import ResolvedJob, Resources
from orchestrator.run_directory import attempts
from orchestrator.run_directory.segments import read_segments
from tests.harness.kube_cluster import NAMESPACE, Cluster
from tests.harness.runs import ROOT, Bench, Driven


@dataclass(kw_only=True)
class KubeBench(Bench):
    """A workplace whose jobs run on `cluster`; two ranks in all, one node or two."""

    cluster: Cluster

    def job(self, **changes: Any) -> ResolvedJob:
        nodes = changes.pop("nodes", 1)
        more = changes.pop("kubernetes", {})
        job = super().job(**changes)
        shape = Resources(nodes=nodes, gpus_per_node=2 // nodes)
        settings = {**self.settings(), **more}
        return replace(
            job, backend="kubernetes", resources=shape, python=sys.executable, kubernetes=settings
        )

    def settings(self) -> dict[str, Any]:
        """The image, and this machine's Python and checkout in it."""
        roots = ["/usr", str(ROOT)]
        for more in (sys.prefix, sys.base_prefix):
            if not any(Path(more).is_relative_to(r) for r in roots):
                roots.append(more)
        mounts = [{"host_path": r, "path": r, "read_only": True} for r in roots]
        mounts.append({"host_path": str(self.folder), "path": str(self.folder)})
        return {
            "image": os.environ["QVL_TEST_IMAGE"],
            "image_pull_policy": "IfNotPresent",
            "namespace": NAMESPACE,
            "volumes": mounts,
            "env": {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            # The run directory belongs to whoever runs the tests.
            "run_as_user": os.getuid(),
            "shm_gb": 0.125,
        }

    def close(self) -> None:
        self.cluster.clear()

    def take_gpus(self) -> list[str]:
        """Pods of higher priority on all GPUs of all nodes; returns their names."""
        names = [f"taker-{i}" for i, _ in enumerate(self.cluster.nodes())]
        for name in names:
            self.cluster.apply(_taker(name))
        return names

    def leave_room(self, free: int) -> list[str]:
        """Pods on all GPUs of the cluster but so many of the last node; returns their names."""
        nodes = self.cluster.nodes()
        names = [f"taker-{i}" for i, _ in enumerate(nodes)]
        for name, node in zip(names, nodes, strict=True):
            gpus = 4 - free if node == nodes[-1] else 4
            self.cluster.apply(_taker(name, gpus=gpus, node=node))
        self.cluster.wait(lambda: {self._phase(n) for n in names} == {"Running"})
        return names

    def _phase(self, pod: str) -> str:
        return str(self.cluster.get("pods", pod)[0]["status"].get("phase"))

    def controller_for(self, run: Driven, seconds: float) -> None:
        """A controller process of the run that is killed after so long."""
        argv = [sys.executable, "-m", "orchestrator.controller", run.run.run_id]
        environ = {**os.environ, "QVL_STATE_DIR": str(self.registry.state_dir)}
        process = subprocess.Popen(argv, env=environ, cwd=ROOT, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _taker(name: str, gpus: int = 4, node: str | None = None) -> dict[str, Any]:
    wanted = {"nvidia.com/gpu": gpus}
    place = {} if node is None else {"nodeSelector": {"kubernetes.io/hostname": node}}
    container = {
        "name": "main",
        "image": os.environ["QVL_TEST_IMAGE"],
        "command": ["sleep", "600"],
        "resources": {"requests": wanted, "limits": wanted},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            **place,
            "priorityClassName": "qvl-test-high",
            "restartPolicy": "Never",
            "containers": [container],
        },
    }


def job_name(run: Driven) -> str:
    """The Job of the newest submission."""
    newest = attempts.read_submissions(run.storage)[-1]
    return f"{run.run.run_id}-{newest.number}"


def run_events(run: Driven, kind: str) -> list[dict[str, Any]]:
    """What the controller and the command line noted of a run."""
    found = []
    for writer in ("controller", "cli"):
        found += [e for _, e in read_segments(run.storage, layout.run_events(writer))]
    return [e for e in found if e["kind"] == kind]


def codes(run: Driven, attempt: int) -> list[int]:
    """The verdicts of an attempt's nodes."""
    return sorted(v.code for v in attempts.read_verdicts(run.storage, attempt))
