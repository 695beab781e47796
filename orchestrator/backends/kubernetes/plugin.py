"""The submitit plugin: `submitit.AutoExecutor(folder, cluster="kubernetes")`.

Runs a pickled function, as submitit's other executors do, in the pod of a Job. The folder must
be reachable under the same path here and in the pod (`kubernetes_volumes`), and the image must
have this program and submitit in it. Parameters are those of `kubernetes:` in a job file.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from submitit.core import core, job_environment

from orchestrator.backends.kubernetes import names, values
from orchestrator.backends.kubernetes.api import Api, ServerApi
from orchestrator.backends.kubernetes.objects import read_job
from orchestrator.config.models.kubernetes import KubernetesSettings
from orchestrator.config.settings import kubernetes_settings

R = TypeVar("R")
_GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")
_NAMESPACE = "QVL_SUBMITIT_NAMESPACE"


@cache
def _server() -> Api:
    return ServerApi()


class KubernetesJobEnvironment(job_environment.JobEnvironment):
    """Where a function finds itself in a pod."""

    # A function has one pod: the other names are those of variables that are never set.
    _env: ClassVar[dict[str, str]] = {
        "job_id": "SUBMITIT_KUBERNETES_JOB",
        "num_tasks": "SUBMITIT_KUBERNETES_TASKS",
        "num_nodes": "SUBMITIT_KUBERNETES_NODES",
        "node": "SUBMITIT_KUBERNETES_NODE",
        "global_rank": "SUBMITIT_KUBERNETES_RANK",
        "local_rank": "SUBMITIT_KUBERNETES_LOCAL_RANK",
    }

    def _requeue(self, countdown: int) -> None:  # noqa: ARG002 - one Job is one attempt
        raise RuntimeError("a function on Kubernetes is not requeued: submit it again")


class KubernetesWatcher(core.InfoWatcher):
    """States of functions' Jobs, by one question for all of them."""

    def update(self) -> None:
        self._num_calls += 1
        for namespace in {names.split_id(i)[0] for i in self._registered - self._finished}:
            for raw in _server().list("jobs", namespace, labels=names.SELECTOR):
                job = read_job(raw)
                state = _state(job.conditions, active=bool((raw.get("status") or {}).get("active")))
                self._info_dict[names.backend_id(namespace, job.name)] = {"State": state}
        self._last_status_check = time.time()
        done = {i for i in self._registered if self.is_done(i, mode="cache")}
        self._finished |= done

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        return self.get_info(_full_id(job_id), mode=mode).get("State") or "UNKNOWN"

    def register_job(self, job_id: str) -> None:
        super().register_job(_full_id(job_id))


def _state(conditions: Mapping[str, Any], *, active: bool) -> str:
    if "Complete" in conditions:
        return "COMPLETED"
    if "Failed" in conditions or "FailureTarget" in conditions:
        return "FAILED"
    return "RUNNING" if active else "PENDING"


def _full_id(job_id: str) -> str:
    """A job's id with its namespace; ids of submitit name files, so that they have none."""
    if "/" in job_id:
        return job_id
    return names.backend_id(os.environ.get(_NAMESPACE) or _server().namespace, job_id)


class KubernetesJob(core.Job[R]):
    """A submitit job whose id is the name of a Job."""

    watcher = KubernetesWatcher(delay_s=60)

    def _register_in_watcher(self) -> None:
        """Done at the first question: a Job of a run is never asked for here."""

    def cancel(self, check: bool = True) -> None:  # noqa: ARG002 - deleting twice is no error
        namespace, name = names.split_id(_full_id(self.job_id))
        _server().delete("jobs", namespace, name)

    def _interrupt(self, timeout: bool = False) -> None:  # noqa: ARG002
        namespace, name = names.split_id(_full_id(self.job_id))
        for pod in _server().list("pods", namespace, labels=f"job-name={name}"):
            _server().evict(namespace, str(pod["metadata"]["name"]))


class KubernetesExecutor(core.PicklingExecutor):
    """Submits functions to a cluster; see the module's description."""

    job_class = KubernetesJob

    @classmethod
    def affinity(cls) -> int:
        """Only if asked for: a kubeconfig at hand does not mean that jobs should go there."""
        return 0

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return set(KubernetesSettings.model_fields) | set(_GENERIC) | {"python"}

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - self._valid_parameters())
        if unknown:
            known = ", ".join(sorted(self._valid_parameters()))
            raise ValueError(f"unknown parameters {', '.join(unknown)}; there are: {known}")
        super()._internal_update_parameters(**kwargs)

    @property
    def _submitit_command_str(self) -> str:
        return "submitit.core._submit"

    def _submit_command(self, command: str) -> core.Job[Any]:
        body = function_job(self.parameters, self.folder, module=command)
        namespace = body["metadata"].get("namespace") or _server().namespace
        os.environ[_NAMESPACE] = namespace
        _server().create("jobs", namespace, body)
        return self.job_class(folder=self.folder, job_id=body["metadata"]["name"])

    # The base class would write a batch script and run a command; both are done above.

    def _num_tasks(self) -> int:
        return 1

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        raise NotImplementedError

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        raise NotImplementedError

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        raise NotImplementedError


def function_job(parameters: Mapping[str, Any], folder: Path, *, module: str) -> dict[str, Any]:
    """The Job of one pickled function. Raises UserError for a parameter that cannot be."""
    given = {k: v for k, v in parameters.items() if k not in (*_GENERIC, "python")}
    settings = kubernetes_settings(given)
    name = f"submitit-{secrets.token_hex(6)}"
    labels = {"app.kubernetes.io/name": "submitit", names.MANAGED_BY: names.PREFIX}
    variables = {
        **settings.env,
        "SUBMITIT_EXECUTOR": KubernetesExecutor.name(),
        "SUBMITIT_KUBERNETES_JOB": name,
    }
    both = _amounts(parameters, settings)
    cpu = {"cpu": int(parameters["cpus_per_task"])} if parameters.get("cpus_per_task") else {}
    container = {
        "name": "function",
        "image": settings.image,
        "command": [parameters.get("python") or values.PYTHON, "-u", "-m", module, str(folder)],
        "env": values.plain_env(variables),
        "envFrom": values.references(settings),
        "resources": {"requests": {**both, **cpu}, "limits": both},
        "securityContext": values.CONTAINER_SECURITY,
        "volumeMounts": values.volume_mounts(settings),
    }
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": values.pod_security(settings),
        "tolerations": values.own_tolerations(settings),
        "containers": [container],
        "volumes": values.pod_volumes(settings, parameters.get("mem_gb")),
        **dict(values.pod_fields(settings)),
    }
    spec = {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}}
    if parameters.get("timeout_min"):
        spec["activeDeadlineSeconds"] = math.ceil(60 * parameters["timeout_min"])
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _amounts(parameters: Mapping[str, Any], settings: KubernetesSettings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if parameters.get("gpus_per_node") and settings.gpu_resource is not None:
        found[settings.gpu_resource] = int(parameters["gpus_per_node"])
    if parameters.get("mem_gb"):
        found["memory"] = f"{math.ceil(1024 * parameters['mem_gb'])}Mi"
    return found
