"""The controller of one run as a Job beside its attempts: `controller: job`."""

from __future__ import annotations

from pathlib import Path

from orchestrator.backends.kubernetes import manifest, names, values
from orchestrator.backends.kubernetes.api import Api, Raw, Refused
from orchestrator.backends.kubernetes.objects import read_job
from orchestrator.config.settings import kubernetes_settings
from orchestrator.contract import env as variables
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import Unreachable, UserError

TEMPLATE = "controller-job.yaml.j2"
MODULE = "orchestrator.controller"


def render_job(job: ResolvedJob, spec: TrainSpec) -> manifest.Manifest:
    """The controller's Job. Pure but for the template; UserError for one that is no such Job."""
    import yaml

    from orchestrator.templates.find import find_template
    from orchestrator.templates.render import render

    site_dir = job.kubernetes.get("templates_dir")
    template = find_template("k8s", TEMPLATE, site_dir=Path(site_dir) if site_dir else None)
    text = render(template, template_values(job, spec)).text
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise UserError(f"{template.path} does not give YAML: {fault}") from None
    for path, wanted in (
        ("kind", "Job"),
        ("metadata.name", names.controller_name(spec.run_id)),
        ("spec.template.spec.restartPolicy", "OnFailure"),
    ):
        if manifest.get(found, path) != wanted:
            raise UserError(
                f"{template.path}: {path} is {manifest.get(found, path)}, not {wanted}",
                hint=f"leave it as k8s/{TEMPLATE} has it",
            )
    return dict(found)


def template_values(job: ResolvedJob, spec: TrainSpec) -> dict[str, object]:
    """Every name that the controller's template may use. It sees what the run's pods see, but
    GPUs: the run directory's volume, and the credentials of its storage.
    """
    settings = kubernetes_settings(job.kubernetes)
    labels = {**manifest.run_labels(spec.run_id), names.COMPONENT: "controller"}
    plain = {
        "HOME": values.SCRATCH,
        "TMPDIR": values.SCRATCH,
        **settings.env,
        variables.STATE_DIR: f"{values.SCRATCH}/state",
    }
    env_from = values.references(settings)
    if job.secrets:
        # Gone when the run is over, at which a controller may still look.
        name = names.secret_name(spec.run_id)
        env_from.append({"secretRef": {"name": name, "optional": True}})
    python = job.python or values.PYTHON
    pulls = [{"name": name} for name in settings.image_pull_secrets]
    return {
        "job_name": names.controller_name(spec.run_id),
        "run_id": spec.run_id,
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": {names.RUN_DIR: spec.storage},
        "service_account": settings.controller_account,
        "pod_fields": [("imagePullSecrets", pulls)] if pulls else [],
        "pod_security": values.pod_security(settings),
        "image": settings.image,
        "image_pull_policy": settings.image_pull_policy,
        "command": [*map(values.literal, (python, "-u", "-m", MODULE, "--stay", spec.storage))],
        "container_security": values.CONTAINER_SECURITY,
        "env": values.plain_env(plain),
        "env_from": env_from,
        "mounts": values.volume_mounts(settings),
        "volumes": values.pod_volumes(settings, None),
        "kubernetes": dict(job.kubernetes),
    }


def start(api: Api, namespace: str, body: manifest.Manifest, owner: Raw) -> str:
    """Create the Job, or leave one that is not over; returns `<namespace>/<name>`.

    May be repeated. Unreachable while an older one is still being removed.
    """
    name = str(body["metadata"]["name"])
    known = api.get("jobs", namespace, name)
    before = read_job(known or {})
    if {"Complete", "Failed"} & set(before.conditions):
        api.delete("jobs", namespace, name, uid=before.uid)
        known = None
    if known is None:
        body["metadata"]["ownerReferences"] = [manifest.owner_reference(owner)]
        try:
            api.create("jobs", namespace, body)
        except Refused as fault:
            if fault.status != 409:
                raise
            known = api.get("jobs", namespace, name)
            if known is None or read_job(known).deleted:
                raise Unreachable(f"the Job {name} is still being removed") from None
    return names.backend_id(namespace, name)
