"""From a rendered template to the object that is sent, and what must hold of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from orchestrator.backends.kubernetes import names
from orchestrator.contract import env as variables
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError

MAX_BYTES = 256_000
MAY_BE_DROPPED = frozenset({"spec.podReplacementPolicy"})
"""Fields that older servers do not know and that we can do without."""

Manifest = dict[str, Any]


def parse(text: str, spec: TrainSpec) -> Manifest:
    """The Job in a rendered template. Raises UserError for what would break the promises."""
    if len(text.encode()) > MAX_BYTES:
        raise UserError(f"the Job's manifest takes {len(text)} bytes", hint="shorten env:")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise UserError(f"the Job's template does not give YAML: {fault}") from None
    if not isinstance(found, dict):
        raise UserError("the Job's template gives no object")
    wrong = [f"{path}: {is_}, not {wanted}" for path, is_, wanted in _faults(found, spec)]
    if wrong:
        raise UserError(
            "the Job's template changes what the supervisor depends upon: " + "; ".join(wrong),
            hint="leave these fields as k8s/job.yaml.j2 has them",
        )
    return found


def _faults(job: Manifest, spec: TrainSpec) -> Iterator[tuple[str, Any, Any]]:
    pod = get(job, "spec.template.spec") or {}
    labels = names.labels(spec)
    for path, wanted in (
        ("apiVersion", "batch/v1"),
        ("kind", "Job"),
        ("metadata.name", spec.key),
        ("spec.completions", spec.nodes),
        ("spec.parallelism", spec.nodes),
        ("spec.backoffLimit", 0),
        ("spec.template.spec.restartPolicy", "Never"),
        *((f"metadata.labels.{k}", v) for k, v in labels.items()),
        *((f"spec.template.metadata.labels.{k}", v) for k, v in labels.items()),
    ):
        where, _, key = path.partition("labels.")
        found = (get(job, f"{where}labels") or {}).get(key) if key else get(job, path)
        if found != wanted:
            yield path, found, wanted
    if (pod.get("terminationGracePeriodSeconds") or 0) < spec.grace_s:
        found = pod.get("terminationGracePeriodSeconds")
        yield "spec.template.spec.terminationGracePeriodSeconds", found, spec.grace_s
    yield from _container_faults(pod)


def _container_faults(pod: Manifest) -> Iterator[tuple[str, Any, Any]]:
    containers = pod.get("containers") or [{}]
    first = containers[0]
    if first.get("name") != names.CONTAINER or "orchestrator.agent" not in (
        first.get("command") or ()
    ):
        yield "containers[0]", first.get("name"), "train, with the agent as its command"
    given = {item.get("name") for item in first.get("env") or ()}
    for name in (variables.SPEC, variables.JOB_UID):
        if name not in given:
            yield "containers[0].env", "absent", name
    resources = first.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in {n for n in (*requests, *limits) if "/" in n}:
        if requests.get(name) != limits.get(name):
            yield f"requests of {name}", requests.get(name), limits.get(name)


def get(value: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def dropped(sent: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of what was sent and is not there in what the server kept, or has another number.

    Quantities come back in other words, so texts are only looked for, not compared.
    """
    if isinstance(sent, Mapping):
        found = []
        for key, value in sent.items():
            below = f"{path}.{key}" if path else str(key)
            if _is_empty(value):
                continue
            if not isinstance(kept, Mapping) or key not in kept:
                found.append(below)
            else:
                found += dropped(value, kept[key], below)
        return found
    if isinstance(sent, list) and isinstance(kept, list):
        pairs = _paired(sent, kept)
        return [x for i, (a, b) in enumerate(pairs) for x in dropped(a, b, f"{path}[{i}]")]
    same = not isinstance(sent, int) or str(sent) == str(kept)
    return [] if same else [path]


def _paired(sent: list[Any], kept: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Items that have a name are found by it: admission may add some between them."""
    named = {item["name"]: item for item in kept if isinstance(item, Mapping) and "name" in item}
    for index, item in enumerate(sent):
        if isinstance(item, Mapping) and "name" in item:
            yield item, named.get(item["name"])
        else:
            yield item, kept[index] if index < len(kept) else None


def _is_empty(value: Any) -> bool:
    """Servers leave out what says nothing."""
    return value is None or value is False or value in ({}, [], "")


def check_kept(sent: Manifest, kept: Manifest) -> None:
    """Raises UserError if the server, or an admission plugin, would run another Job."""
    lost = [p for p in dropped(sent, kept) if p not in MAY_BE_DROPPED]
    if not lost:
        return
    hint = "ask the cluster's administrator which admission policy changes it"
    if any(p == "spec.suspend" for p in lost):
        hint = "this server is too old for Kueue: remove kubernetes.queue"
    raise UserError(f"the cluster would not keep all of the Job: {', '.join(lost)}", hint=hint)


def anchor(spec: TrainSpec, namespace: str) -> Manifest:
    """The run's ConfigMap: what says that this cluster knows the run, and owns the rest."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": spec.run_id,
            "namespace": namespace,
            "labels": run_labels(spec.run_id),
            "annotations": {names.RUN_DIR: spec.storage},
        },
        "data": {"run-id": spec.run_id, "run-dir": spec.storage},
    }


def secret(run_id: str, name: str, values: Mapping[str, str], owner: Manifest) -> Manifest:
    """The Secret with a run's secret variables, removed with its owner."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": name,
            "labels": run_labels(run_id),
            "ownerReferences": [owner_reference(owner)],
        },
        "stringData": dict(values),
    }


def owner_reference(owner: Manifest) -> dict[str, Any]:
    """Makes the server remove an object when its owner is removed."""
    return {
        "apiVersion": owner.get("apiVersion") or "v1",
        "kind": owner.get("kind") or "ConfigMap",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }


def run_labels(run_id: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": names.PREFIX,
        names.MANAGED_BY: names.PREFIX,
        names.RUN: run_id,
    }
