"""The `kubernetes:` block of a job file, and that of the site's file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from orchestrator.config.faults import Fault
from orchestrator.config.fields import Many, Section, Text, bundle, refuse, without_nulls
from orchestrator.config.values.sensitive import CURE, known_secret, secret_name, secret_value

_QUALIFIED = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9][-A-Za-z0-9_.]{0,62}"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _matching(pattern: str, what: str) -> tuple[AfterValidator, WithJsonSchema]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise refuse(f"{value[:80]!r} is no {what}")
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


Image = Annotated[Text, *_matching(r"[!-~]{1,1024}", "name of an image")]
Name = Annotated[
    Text, *_matching(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "name of a Kubernetes object")
]
Namespace = Annotated[Text, *_matching(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "namespace")]
Resource = Annotated[Text, *_matching(_QUALIFIED, "name of a resource")]
AbsolutePath = Annotated[Text, *_matching(r"/.*", "absolute path")]
SubPath = Annotated[Text, *_matching(r"(?!/)((?!\.\.).)*", "sub_path")]
Gigabytes = Annotated[float, Field(gt=0, lt=1e6)]
TaintText = Annotated[str, Field(max_length=4096)]
"""Empty, it is as good as left out."""
Id = Annotated[int, Field(ge=0, lt=2**31)]


def _qualified(values: Mapping[str, str]) -> Mapping[str, str]:
    return _each(values, lambda name, _: None if re.fullmatch(_QUALIFIED, name) else _NO_NAME)


def _plain(values: Mapping[str, str]) -> Mapping[str, str]:
    return _each(values, _variable_fault)


_NO_NAME = ("is no name", None)


def _variable_fault(name: str, value: str) -> tuple[str, str | None] | None:
    if not _VARIABLE.fullmatch(name) or name.startswith("QVL_"):
        return "cannot be set here", None
    if secret_name(name) or secret_value(value) or known_secret(value):
        return "looks like a secret", CURE.format(name=name)
    return None


def _each(
    values: Mapping[str, str], check: Callable[[str, str], tuple[str, str | None] | None]
) -> Mapping[str, str]:
    faults = tuple(Fault((n,), *said) for n, v in values.items() if (said := check(n, v)))
    if faults:
        raise bundle(faults)
    return values


class Mount(Section):
    """A volume of the cluster at a path of the container: a claim, or a folder of the node."""

    path: AbsolutePath = Field(description="Where the container sees it.")
    claim: Name | None = Field(default=None, description="A PersistentVolumeClaim.")
    host_path: AbsolutePath | None = Field(default=None, description="A folder of the node.")
    sub_path: SubPath | None = Field(default=None, description="Only this folder of it.")
    read_only: bool = Field(default=False, description="Nothing is written to it.")

    @model_validator(mode="after")
    def _one_source(self) -> Mount:
        if (self.claim is None) == (self.host_path is None):
            raise refuse("give claim (a PersistentVolumeClaim) or host_path")
        return self


class Toleration(Section):
    """A taint that pods put up with, in Kubernetes' own form."""

    key: TaintText | None = Field(
        default=None, description="The taint's key; left out: every taint."
    )
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Default: Equal.")
    value: TaintText | None = Field(default=None, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; left out: every one."
    )
    tolerationSeconds: int | None = Field(  # noqa: N815 - Kubernetes' own form
        default=None, description="How long a pod stays on a node with a NoExecute taint."
    )


class KubernetesSite(Section):
    """What holds for every job on Kubernetes; a job's own `kubernetes:` block wins."""

    controller: Literal["process", "job", "deployment", "none"] = Field(
        default="process",
        description="Who looks after a run: a process that `submit` leaves on its machine, a small "
        "Job a run, the Deployment of k8s/controller.yaml, or none.",
    )
    controller_account: Name = Field(
        default="qvl-orchestrate",
        description="Service account of the `job` kind, with the Role of k8s/rbac.yaml.",
    )


class KubernetesSection(KubernetesSite):
    """What a job asks of Kubernetes; null = the cluster's own default."""

    image: Image | None = Field(
        default=None, description="The container's image, with this program in it (see k8s/)."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is fetched: Always, IfNotPresent or Never."
    )
    image_pull_secrets: Many[Name] = Field(
        default=(), description="Secrets that open the image's registry."
    )
    namespace: Namespace | None = Field(
        default=None, description="Namespace; null = that of the kubeconfig's context."
    )
    queue: Name | None = Field(
        default=None,
        description="Kueue's local queue: the Job is created suspended and waits for its "
        "admission.",
    )
    service_account: Name | None = Field(default=None, description="Service account of the pods.")
    priority_class: Name | None = Field(default=None, description="Priority class of the pods.")
    runtime_class: Name | None = Field(default=None, description="Runtime class of the pods.")
    scheduler: Name | None = Field(default=None, description="Scheduler of the pods.")
    node_selector: Annotated[Mapping[str, str], AfterValidator(_qualified)] = Field(
        default_factory=dict, description="Labels that nodes must have."
    )
    tolerations: Many[Toleration] = Field(
        default=(),
        description="Taints that pods put up with, beside those of spot nodes: [{key: K, operator: "
        "Equal, value: V, effect: NoExecute, tolerationSeconds: 60}].",
    )
    gpu_resource: Resource | None = Field(
        default="nvidia.com/gpu",
        description="What a GPU is called on the nodes; null: none is asked for (training on the "
        "CPU).",
    )
    volumes: Many[Mount] = Field(
        default=(),
        description="Claims and folders of the nodes: [{path: /data, claim: data, read_only: "
        "true}, {path: /fast, host_path: /mnt/ssd, sub_path: mine}].",
    )
    shm_gb: Gigabytes | None = Field(
        default=None,
        description="Limit of /dev/shm; null = half of resources.memory_gb, or 8.",
    )
    scratch_gb: Gigabytes | None = Field(
        default=None, description="Limit of the temporary folder; null = none."
    )
    env: Annotated[Mapping[str, str], AfterValidator(_plain)] = Field(
        default_factory=dict,
        description="Plain variables of the whole container: agent, helper and ranks.",
    )
    env_from_secrets: Many[Name] = Field(
        default=(), description="Secrets of which every entry becomes a variable."
    )
    env_from_config: Many[Name] = Field(
        default=(), description="ConfigMaps of which every entry becomes a variable."
    )
    run_as_user: Id | None = Field(
        default=None, description="null = the image's user, which must not be root."
    )
    run_as_group: Id | None = Field(default=None, description="null = the image's group.")
    fs_group: Id | None = Field(default=None, description="Group of the volumes' files.")

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, data: Any) -> Any:
        """null says something of `gpu_resource` only."""
        kept = {"gpu_resource": None} if _says_no_gpu(data) else {}
        plain = without_nulls(data)
        return {**plain, **kept} if kept else plain


def _says_no_gpu(data: Any) -> bool:
    return isinstance(data, Mapping) and data.get("gpu_resource", "") is None


class KubernetesSettings(KubernetesSection):
    """The resolved block: what of the job and the site a manifest needs."""

    image: Image = Field(description="Name an image with this program in it (see k8s/).")
