"""What a Job's template is rendered with. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.backends.kubernetes import names
from orchestrator.config.settings import kubernetes_settings
from orchestrator.contract import env as variables
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.config.models.kubernetes import KubernetesSettings, Mount

MAX_SPEC_BYTES = 100_000
"""The spec travels as one environment variable; Linux takes 128 KiB for each."""
PYTHON = "python3"
"""Interpreter of the image, where the job names none."""
SCRATCH = "/tmp"  # noqa: S108 - an emptyDir of the pod's own
SHM_GB = 8.0
SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "NoSchedule"),
    ("cloud.google.com/gke-preemptible", "NoSchedule"),
    ("kubernetes.azure.com/scalesetpriority", "NoSchedule"),
    ("karpenter.sh/capacity-type", "NoSchedule"),
    ("eks.amazonaws.com/capacityType", "NoSchedule"),
)
"""Taints by which clouds keep other pods off spot nodes; whatever their value."""
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def pod_spec(job: ResolvedJob, spec: TrainSpec) -> TrainSpec:
    """The spec as it travels: with nothing of the submitter's machine."""
    return replace(
        spec,
        python=job.python or PYTHON,
        secrets_file=None,
        devices_dir=None,
        scratch_dir=SCRATCH,
    )


def template_values(job: ResolvedJob, spec: TrainSpec) -> Mapping[str, object]:
    """Every name that a template of kind `k8s` may use (see k8s/README.md).

    Raises UserError for settings that cannot stand in a manifest.
    """
    settings = kubernetes_settings(job.kubernetes)
    sent = pod_spec(job, spec)
    labels = names.labels(spec)
    requests, limits = _resources(job, settings)
    return {
        "job_name": spec.key,
        "run_id": spec.run_id,
        "name": job.name,
        "namespace": settings.namespace,
        "labels": labels,
        "job_labels": {**labels, **({names.QUEUE: settings.queue} if settings.queue else {})},
        "annotations": {names.RUN_DIR: spec.storage},
        "nodes": job.resources.nodes,
        "gpus_per_node": job.resources.gpus_per_node,
        "queue": settings.queue,
        "time_limit_s": job.resources.time_limit_s,
        "grace_s": grace_s(job),
        "pod_fields": pod_fields(settings),
        "tolerations": _tolerations(spec, settings),
        "pod_security": pod_security(settings),
        "image": settings.image,
        "image_pull_policy": settings.image_pull_policy,
        "command": [literal(sent.python), "-u", "-m", "orchestrator.agent", "-"],
        "container_security": CONTAINER_SECURITY,
        "env": _environment(sent, settings),
        "env_from": _env_from(job, spec, settings),
        "requests": requests,
        "limits": limits,
        "mounts": volume_mounts(settings),
        "volumes": pod_volumes(settings, job.resources.memory_gb),
        "kubernetes": dict(job.kubernetes),
    }


def grace_s(job: ResolvedJob) -> int:
    """Seconds between SIGTERM and SIGKILL: never less than what the agent counts with."""
    return math.ceil(job.preemption.grace_s)


def pod_fields(settings: KubernetesSettings) -> list[tuple[str, Any]]:
    """Fields of the pod that stand there only where they were set."""
    pairs = (
        ("serviceAccountName", settings.service_account),
        ("priorityClassName", settings.priority_class),
        ("runtimeClassName", settings.runtime_class),
        ("schedulerName", settings.scheduler),
        ("nodeSelector", dict(settings.node_selector) or None),
        ("imagePullSecrets", [{"name": n} for n in settings.image_pull_secrets] or None),
    )
    return [(name, value) for name, value in pairs if value is not None]


def _tolerations(spec: TrainSpec, settings: KubernetesSettings) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = [
        {"key": key, "operator": "Exists", "effect": effect} for key, effect in SPOT_TAINTS
    ]
    if settings.gpu_resource is not None:
        found.append({"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    # A node that does not answer is given up as soon as its peers give it up.
    found += [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": math.ceil(spec.node_lost_s),
        }
        for key in _UNREACHABLE
    ]
    return [*found, *own_tolerations(settings)]


def own_tolerations(settings: KubernetesSettings) -> list[dict[str, Any]]:
    """Those that the job names."""
    return [taint.model_dump(exclude_none=True) for taint in settings.tolerations]


def pod_security(settings: KubernetesSettings) -> dict[str, Any]:
    """Non-root, unless user 0 was asked for."""
    user = settings.run_as_user
    chosen = {
        "runAsUser": user,
        "runAsGroup": settings.run_as_group,
        "fsGroup": settings.fs_group,
    }
    return {
        "runAsNonRoot": user != 0,
        "seccompProfile": {"type": "RuntimeDefault"},
        **{name: value for name, value in chosen.items() if value is not None},
    }


def _environment(spec: TrainSpec, settings: KubernetesSettings) -> list[dict[str, Any]]:
    """Home, caches and temporary files go to the pod's own folder: the rest is read-only."""
    plain = {"HOME": SCRATCH, "TMPDIR": SCRATCH, **settings.env, variables.SPEC: _spec_text(spec)}
    uid = {"fieldRef": {"fieldPath": "metadata.labels['controller-uid']"}}
    return [
        *plain_env(plain),
        {"name": variables.JOB_UID, "valueFrom": uid},
    ]


def plain_env(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    """Variables as a container takes them."""
    return [{"name": name, "value": literal(value)} for name, value in variables.items()]


def literal(text: str) -> str:
    """A text in which `$(NAME)` stands for itself and not for another variable."""
    return text.replace("$", "$$")


def _env_from(
    job: ResolvedJob, spec: TrainSpec, settings: KubernetesSettings
) -> list[dict[str, Any]]:
    found = references(settings)
    if job.secrets:
        found.append({"secretRef": {"name": names.secret_name(spec.run_id)}})
    return found


def references(settings: KubernetesSettings) -> list[dict[str, Any]]:
    """Objects of the cluster whose every entry becomes a variable."""
    maps = [{"configMapRef": {"name": name}} for name in settings.env_from_config]
    return maps + [{"secretRef": {"name": name}} for name in settings.env_from_secrets]


def _resources(
    job: ResolvedJob, settings: KubernetesSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Requests and limits. GPUs and memory are the same in both, a core may be borrowed."""
    shape = job.resources
    both: dict[str, Any] = {}
    if settings.gpu_resource is not None:
        both[settings.gpu_resource] = shape.gpus_per_node
    if shape.memory_gb is not None:
        both["memory"] = f"{math.ceil(shape.memory_gb * 1024)}Mi"
    requests = dict(both)
    if shape.cpus_per_gpu is not None:
        requests["cpu"] = shape.cpus_per_gpu * shape.gpus_per_node
    return requests, both


def volume_mounts(settings: KubernetesSettings) -> list[dict[str, Any]]:
    """Where the container sees the volumes."""
    found: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "scratch", "mountPath": SCRATCH},
    ]
    for index, mount in enumerate(settings.volumes):
        item: dict[str, Any] = {"name": f"volume-{index}", "mountPath": mount.path}
        if mount.sub_path is not None:
            item["subPath"] = mount.sub_path
        if mount.read_only:
            item["readOnly"] = True
        found.append(item)
    return found


def pod_volumes(settings: KubernetesSettings, memory: float | None) -> list[dict[str, Any]]:
    """Shared memory, the pod's own folder, and what the settings name. memory: GB, if limited."""
    shm_gb = settings.shm_gb or (memory / 2 if memory is not None else SHM_GB)
    scratch: dict[str, Any] = {}
    if settings.scratch_gb is not None:
        scratch = {"sizeLimit": _mebibytes(settings.scratch_gb)}
    return [
        # 64 MB, the runtime's own, are too few for the workers of a DataLoader.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mebibytes(shm_gb)}},
        {"name": "scratch", "emptyDir": scratch},
        *({"name": f"volume-{i}", **_source(m)} for i, m in enumerate(settings.volumes)),
    ]


def _source(mount: Mount) -> dict[str, Any]:
    if mount.claim is not None:
        claim = {"claimName": mount.claim, "readOnly": mount.read_only}
        return {"persistentVolumeClaim": claim}
    return {"hostPath": {"path": mount.host_path}}


def _mebibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1024)}Mi"


def _spec_text(spec: TrainSpec) -> str:
    text = canonical(to_json(spec)).decode()
    if len(text.encode()) > MAX_SPEC_BYTES:
        raise UserError(
            f"the job's settings take {len(text)} bytes, more than an environment variable holds",
            hint="put long values of env: into a file",
        )
    return text
