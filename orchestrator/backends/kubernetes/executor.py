"""submitit's part: the plugin `kubernetes`, and the executor that our own Jobs go through.

Of submitit its submission path is used (folders, ids, job objects). For Jobs of ours its pickle
is written because the base class does, into a temporary folder, and never read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.backends.kubernetes.plugin import KubernetesExecutor, KubernetesJob


class _ManifestExecutor(KubernetesExecutor):
    """Submits by calling `create`."""

    def __init__(self, folder: Path, create: Callable[[], dict[str, Any]]) -> None:
        super().__init__(folder=folder)
        self._create = create
        self.kept: dict[str, Any] = {}

    def _submit_command(self, command: str) -> KubernetesJob[Any]:  # noqa: ARG002
        self.kept = self._create()
        name = str(self.kept["metadata"]["name"])
        return KubernetesJob(folder=self.folder, job_id=name)


def submit_manifest(folder: Path, create: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Submit a Job of ours; returns it as the server keeps it."""
    executor = _ManifestExecutor(folder, create)
    executor.submit(_nothing)
    return executor.kept


def _nothing() -> None:
    """What submitit pickles."""
