"""The `kubernetes:` block of a resolved job: the site's and the user's settings, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from orchestrator.config.values.sensitive import CURE, known_secret, secret_name, secret_value
from orchestrator.config.values.suggest import did_you_mean
from orchestrator.errors import UserError

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTROLLERS = ("process", "job", "deployment", "none")
"""A process that `submit` leaves on its machine, a Job a run, the site's own, or nobody."""
_ELSEWHERE = ("template", "templates_dir", "frozen")
"""Fields that `templates.find` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume of the cluster at a path of the container: a claim, or a folder of the node."""

    path: str
    claim: str | None = None
    host_path: str | None = None
    sub_path: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """What of `kubernetes:` a manifest needs; None = the cluster's own default."""

    image: str = ""
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    namespace: str | None = None
    """None = that of the kubeconfig's context."""
    queue: str | None = None
    """Kueue's local queue: the Job is created suspended and waits for its admission."""
    service_account: str | None = None
    priority_class: str | None = None
    runtime_class: str | None = None
    scheduler: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """In Kubernetes' own form, beside those for spot nodes."""
    gpu_resource: str | None = "nvidia.com/gpu"
    """What a GPU is called on the nodes; null: none is asked for (training on the CPU)."""
    volumes: tuple[Mount, ...] = ()
    shm_gb: float | None = None
    """Limit of /dev/shm; None = half of resources.memory_gb, or 8."""
    scratch_gb: float | None = None
    """Limit of the temporary folder; None = none."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Plain variables of the whole container: agent, helper and ranks."""
    env_from_secrets: tuple[str, ...] = ()
    env_from_config: tuple[str, ...] = ()
    controller: str = "process"
    """Who looks after the run: one of CONTROLLERS."""
    controller_account: str = "qvl-orchestrate"
    """Service account of a controller that is a Job, with the Role of k8s/rbac.yaml."""
    run_as_user: int | None = None
    """None = the image's user, which must not be root."""
    run_as_group: int | None = None
    fs_group: int | None = None


def parse_settings(block: Mapping[str, Any]) -> KubernetesSettings:
    """Check a `kubernetes:` block. Raises UserError naming the field."""
    known = [f.name for f in fields(KubernetesSettings)]
    values: dict[str, Any] = {}
    for name, value in block.items():
        if name in _ELSEWHERE:
            continue
        if name not in known:
            raise UserError(
                f"kubernetes.{name}: unknown field", hint=did_you_mean(name, known) or None
            )
        if value is not None or name == "gpu_resource":
            values[name] = _CHECKS[name](f"kubernetes.{name}", value)
    settings = KubernetesSettings(**values)
    if not settings.image:
        raise UserError(
            "kubernetes.image is missing", hint="name an image with this program in it (see k8s/)"
        )
    return settings


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UserError(f"{where}: {value!r} is no text")
    return value


def _image(where: str, value: Any) -> str:
    if " " in _text(where, value) or len(value) > 1024:
        raise UserError(f"{where}: {value!r} is no name of an image")
    return str(value)


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str, Any], str]:
    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise UserError(f"{where}: {value!r} is no {what}")
        return value

    return check


_name = _matching(_SUBDOMAIN, "name of a Kubernetes object")
_namespace = _matching(_LABEL, "namespace")
_qualified = _matching(_QUALIFIED, "name of a resource")


def _gpu_resource(where: str, value: Any) -> str | None:
    return None if value is None else _qualified(where, value)


def _policy(where: str, value: Any) -> str:
    choices = ("Always", "IfNotPresent", "Never")
    if value not in choices:
        raise UserError(f"{where}: {value!r}", hint=f"one of {', '.join(choices)}")
    return str(value)


def _controller(where: str, value: Any) -> str:
    if value not in CONTROLLERS:
        raise UserError(f"{where}: {value!r}", hint=f"one of {', '.join(CONTROLLERS)}")
    return str(value)


def _names(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: a list of names is wanted")
    return tuple(_name(where, item) for item in value)


def _texts(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
        raise UserError(f"{where}: texts by name are wanted", hint='put numbers in quotes: "1"')
    return {_qualified(where, key): item for key, item in value.items()}


def _env(where: str, value: Any) -> dict[str, str]:
    found = _texts(where, value)
    for name, text in found.items():
        if not _ENV.fullmatch(name) or name.startswith("QVL_"):
            raise UserError(f"{where}: {name!r} cannot be set here")
        if secret_name(name) or secret_value(text) or known_secret(text):
            raise UserError(f"{where}: {name} looks like a secret", hint=CURE.format(name=name))
    return found


def _tolerations(where: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    fields_ = ("key", "operator", "value", "effect", "tolerationSeconds")
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: a list is wanted")
    for item in value:
        if not isinstance(item, Mapping) or not set(item) <= set(fields_):
            raise UserError(f"{where}: {item!r} is none", hint=f"fields: {', '.join(fields_)}")
    return tuple(dict(item) for item in value)


def _volumes(where: str, value: Any) -> tuple[Mount, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: a list is wanted")
    return tuple(_mount(f"{where}[{i}]", item) for i, item in enumerate(value))


def _mount(where: str, item: Any) -> Mount:
    known = {f.name for f in fields(Mount)}
    if not isinstance(item, Mapping) or not set(item) <= known:
        raise UserError(
            f"{where}: {item!r} is no volume", hint=f"fields: {', '.join(sorted(known))}"
        )
    mount = Mount(**{"path": "", **item})
    for path in (mount.path, mount.host_path):
        if path is not None and (not isinstance(path, str) or not path.startswith("/")):
            raise UserError(f"{where}: {path!r} is no absolute path")
    if (mount.claim is None) == (mount.host_path is None):
        raise UserError(f"{where}: give claim (a PersistentVolumeClaim) or host_path")
    if mount.claim is not None:
        _name(where, mount.claim)
    if not isinstance(mount.read_only, bool):
        raise UserError(f"{where}: read_only is true or false")
    sub = mount.sub_path
    if sub is not None and (not isinstance(sub, str) or sub.startswith("/") or ".." in sub):
        raise UserError(f"{where}: {sub!r} is no sub_path")
    return mount


def _positive(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UserError(f"{where}: {value!r} is no size in GB")
    return float(value)


def _number(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise UserError(f"{where}: {value!r} is no number of a user or group")
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "image": _image,
    "image_pull_policy": _policy,
    "image_pull_secrets": _names,
    "namespace": _namespace,
    "queue": _name,
    "service_account": _name,
    "priority_class": _name,
    "runtime_class": _name,
    "scheduler": _name,
    "node_selector": _texts,
    "tolerations": _tolerations,
    "gpu_resource": _gpu_resource,
    "volumes": _volumes,
    "shm_gb": _positive,
    "scratch_gb": _positive,
    "env": _env,
    "env_from_secrets": _names,
    "env_from_config": _names,
    "run_as_user": _number,
    "run_as_group": _number,
    "fs_group": _number,
    "controller": _controller,
    "controller_account": _name,
}
