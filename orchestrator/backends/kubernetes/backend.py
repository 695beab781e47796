"""The Kubernetes backend's five verbs. Ids are `<namespace>/<Job>`; one Job is one attempt."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from orchestrator.backends.base import Capabilities, Found, JobRef, Observation, Submission
from orchestrator.backends.kubernetes import manifest, names, reading, values
from orchestrator.backends.kubernetes.api import (
    Api,
    Raw,
    Refused,
    ServerApi,
    kubeconfig_in_force,
)
from orchestrator.backends.kubernetes.cluster import Cluster
from orchestrator.backends.kubernetes.objects import (
    PodView,
    TakenBack,
    read_anchor,
    read_job,
    read_pod,
)
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Ending
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import Full, InternalError, QvlError, Unreachable, UserError

TEMPLATE = "job.yaml.j2"
CAPABILITIES = Capabilities(
    requeues_itself=False,
    starts_once=True,
    backoff_base_s=10.0,
    poll_s=1.0,
)
KEPT_JOBS = 3
"""Finished Jobs of a run that are left for `kubectl` when a newer one is submitted."""


def create(state_dir: Path) -> KubernetesBackend:  # noqa: ARG001 - nothing is kept here
    """The backend of the cluster that `kubectl` would talk to: one for all runs, so that they
    share its answers, until another kubeconfig is in force.
    """
    return _shared(kubeconfig_in_force())


@lru_cache(maxsize=2)
def _shared(_: object) -> KubernetesBackend:
    return KubernetesBackend(ServerApi)


class KubernetesBackend:
    """Jobs are batch/v1 Jobs. `connect` is called when the server is first needed."""

    def __init__(
        self,
        connect: Callable[[], Api],
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._wall = wall
        self._steady = steady
        self._known: Cluster | None = None

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    @property
    def _cluster(self) -> Cluster:
        if self._known is None:
            self._known = Cluster(self._connect(), self._steady)
        return self._known

    @property
    def _api(self) -> Api:
        return self._cluster.api

    def prepare(self, job: ResolvedJob, spec: TrainSpec) -> Submission:
        from orchestrator.templates.find import find_for
        from orchestrator.templates.render import render

        template = find_for("k8s", TEMPLATE, job.kubernetes)
        names.check(spec)
        rendered = render(template, values.template_values(job, spec))
        manifest.parse(rendered.text, spec)
        return Submission(
            number=spec.submission,
            spec=spec,
            text=rendered.text,
            template=rendered.template_id,
            template_sha256=rendered.sha256,
        )

    def submit(self, submission: Submission, key: str) -> JobRef:
        try:
            return self._submit(submission, key)
        except Refused as fault:
            raise _refusal(fault) from None

    def _submit(self, submission: Submission, key: str) -> JobRef:
        from orchestrator.backends.kubernetes.executor import submit_manifest

        spec = submission.spec
        job = manifest.parse(submission.text, spec)
        if job["metadata"]["name"] != key:
            raise InternalError(f"the Job is called {job['metadata']['name']}, not {key}")
        namespace = job["metadata"].setdefault("namespace", self._api.namespace)
        known = self._api.get("jobs", namespace, key)
        if known is None:
            owner = self._anchor(spec, namespace)
            self._secret(spec, namespace, owner, wanted=_needs_secret(job, spec.run_id))
            self._clear(spec, namespace)
            job["metadata"]["ownerReferences"] = [manifest.owner_reference(owner)]
            self._try(namespace, job)
            with tempfile.TemporaryDirectory(prefix="qvl-submit-") as folder:
                known = submit_manifest(Path(folder), lambda: self._create(namespace, job))
            self._is_back(namespace, owner, spec)
        self._cluster.forget()
        _refuse_stranger(known, spec)
        return JobRef(names.backend_id(namespace, key), key, read_job(known).uid)

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        return {j: reading.read(self._cluster.attempt(j.id), self._wall(), j.uid) for j in jobs}

    def notify(self, job: JobRef, signal: str, rank: int | None) -> None:
        """An eviction of every pod, as a drain makes it: SIGTERM and the whole grace."""
        if signal != "SIGTERM":
            raise UserError(
                f"Kubernetes gives notice by SIGTERM, not {signal}", hint="leave out --signal"
            )
        if rank is not None:
            raise UserError("Kubernetes gives notice to whole pods", hint="leave out --rank")
        namespace, name = names.split_id(job.id)
        uid = self._uid(job)
        pods = self._pods(namespace, name) if uid else ()
        evicted = [self._evict(namespace, pod) for pod in pods if pod.owner == uid]
        self._cluster.forget()
        if not any(evicted):
            raise UserError(f"job {job.id} has no pod that runs")

    def cancel(self, job: JobRef) -> None:
        namespace, name = names.split_id(job.id)
        uid = self._uid(job)
        if uid:
            self._said(
                lambda: self._api.delete("jobs", namespace, name, uid=uid),
                "the Job cannot be deleted",
            )
        self._cluster.forget()

    def _uid(self, job: JobRef) -> str:
        """The uid of the Job, if it is the one that was handed over; empty if there is none.

        Of a run that an older version submitted, no uid is known: the Job with the run's name
        and label is its.
        """
        namespace, name = names.split_id(job.id)
        try:
            found = read_job(self._api.get("jobs", namespace, name) or {})
        except Refused as fault:
            raise Unreachable(f"the Job cannot be looked at: {fault.message}") from None
        mine = found.run_id == names.run_of(name)[0] and job.uid in ("", found.uid)
        return found.uid if mine else ""

    # --- beyond the five verbs (see backends/base.py)

    def wait(self, seconds: float, job: JobRef | None = None) -> None:
        """Watches the Jobs; where that cannot be, the time just passes."""
        end = self._steady() + seconds
        try:
            if job is None:
                self._cluster.wait(self._api.namespace, None, seconds)
            else:
                namespace, name = names.split_id(job.id)
                self._cluster.wait(namespace, names.run_of(name)[0], seconds)
        except QvlError:
            # Said by the next question. A Role of an older version has no right to watch.
            time.sleep(max(0.0, end - self._steady()))

    def withdraw(self, job: JobRef, why: str) -> None:
        """Take a Job back that waits in vain, and note why, so that it is no cancel."""
        namespace, name = names.split_id(job.id)
        run_id, number = names.run_of(name)
        self._note(namespace, run_id, {names.WITHDRAWN: f"{number} {why}", names.TAKEN_BACK: None})
        self.cancel(job)

    def give_back(self, job: JobRef, why: str) -> None:
        """Delete a Job for which there is no room; `absent` until it is submitted again."""
        namespace, name = names.split_id(job.id)
        run_id, number = names.run_of(name)
        known = self._taken_back(namespace, run_id, number)
        count = known.count + 1 if known is not None else 1
        note = TakenBack(submission=number, count=count, at=self._wall(), why=why)
        texts = {names.TAKEN_BACK: json.dumps(to_json(note)), names.WITHDRAWN: f"{number} {why}"}
        self._note(namespace, run_id, texts)
        self.cancel(job)

    def end(self, job: JobRef, ending: Ending, why: str) -> None:
        """Delete a Job whose attempt has ended while other containers hold what it was given."""
        namespace, name = names.split_id(job.id)
        run_id, number = names.run_of(name)
        note = TakenBack(submission=number, over=True, ending=ending, why=why)
        said = f"{number} its attempt had ended"
        texts = {names.TAKEN_BACK: json.dumps(to_json(note)), names.WITHDRAWN: said}
        self._note(namespace, run_id, texts)
        self.cancel(job)

    def _taken_back(self, namespace: str, run_id: str, number: int) -> TakenBack | None:
        raw = self._api.get("configmaps", namespace, run_id)
        note = None if raw is None else read_anchor(raw).taken_back
        return note if note is not None and note.submission == number else None

    def _note(self, namespace: str, run_id: str, texts: Mapping[str, str | None]) -> None:
        self._said(
            lambda: self._api.patch(
                "configmaps", namespace, run_id, {"metadata": {"annotations": dict(texts)}}
            ),
            "the run's ConfigMap cannot be changed",
        )

    def forget_secrets(self, run_id: str, backend_id: str) -> None:
        """Remove the run's Secret."""
        namespace, _ = names.split_id(backend_id)
        name = names.secret_name(run_id)
        self._said(lambda: self._api.delete("secrets", namespace, name), "the Secret stays")

    def forget_run(self, run_id: str, backend_id: str) -> None:
        """Remove the run's ConfigMap, and with it everything that it owns."""
        namespace = names.split_id(backend_id)[0] or self._api.namespace
        self._said(
            lambda: self._api.delete("configmaps", namespace, run_id), "the run's ConfigMap stays"
        )

    def start_controller(self, job: ResolvedJob, spec: TrainSpec) -> str:
        """A Job that is the run's controller; one that is there and not over is left alone.

        Unreachable if the cluster does not take it.
        """
        from orchestrator.backends.kubernetes import controllers

        body = controllers.render_job(job, spec)
        namespace = body["metadata"].setdefault("namespace", self._api.namespace)
        try:
            owner = self._anchor(spec, namespace)
            # Its pod reads the storage's credentials from there.
            wanted = _read_secrets(spec.secrets_file) is not None
            self._secret(spec, namespace, owner, wanted=wanted)
            return controllers.start(self._api, namespace, body, owner)
        except Refused as fault:
            refused = _refusal(fault)
            raise Unreachable(refused.message, hint=refused.hint) from None

    def discover(self) -> Sequence[Found]:
        """Runs of this namespace, whoever submitted them."""
        anchors = self._cluster.anchors(self._api.namespace)
        return [Found(run_id=a.run_id, uri=a.run_dir) for a in anchors if a.run_dir]

    # --- submitting

    def _anchor(self, spec: TrainSpec, namespace: str) -> Raw:
        known = self._api.get("configmaps", namespace, spec.run_id)
        if known is not None:
            return known
        body = manifest.anchor(spec, namespace)
        try:
            return self._api.create("configmaps", namespace, body)
        except Refused as fault:
            known = self._api.get("configmaps", namespace, spec.run_id)
            if fault.status == 409 and known is not None:
                return known
            raise

    def _is_back(self, namespace: str, owner: Raw, spec: TrainSpec) -> None:
        """From now on, a Job that is missing was deleted by others again."""
        note = read_anchor(owner).taken_back
        if note is not None and note.submission == spec.submission and note.at is not None:
            text = json.dumps(to_json(replace(note, at=None)))
            self._note(namespace, spec.run_id, {names.TAKEN_BACK: text, names.WITHDRAWN: None})

    def _secret(self, spec: TrainSpec, namespace: str, owner: Raw, *, wanted: bool) -> None:
        """Secret values as the submitter has them; later controllers find them in the cluster."""
        if not wanted:
            return
        name = names.secret_name(spec.run_id)
        stored = _read_secrets(spec.secrets_file)
        if stored is None:
            if self._api.get("secrets", namespace, name) is None:
                raise UserError(
                    f"the secrets of run {spec.run_id} are not in the cluster any more",
                    hint=f"where they are exported: `qvl-orchestrate resume {spec.run_id}`",
                )
            return
        body = manifest.secret(spec.run_id, name, stored, owner)
        try:
            self._api.create("secrets", namespace, body)
        except Refused as fault:
            if fault.status != 409:
                raise
            self._said(
                lambda: self._api.patch("secrets", namespace, name, {"stringData": stored}),
                "the Secret cannot be changed",
            )

    def _clear(self, spec: TrainSpec, namespace: str) -> None:
        """Remove Jobs of earlier submissions: those that would still start pods, and old ones."""
        for raw in self._api.list("jobs", namespace, labels=names.of_run(spec.run_id)):
            job = read_job(raw)
            _, number = names.run_of(job.name)
            over = "Complete" in job.conditions or "Failed" in job.conditions
            if 0 < number < spec.submission and (not over or number < spec.submission - KEPT_JOBS):
                self._api.delete("jobs", namespace, job.name, uid=job.uid)

    def _try(self, namespace: str, job: manifest.Manifest) -> None:
        """A dry run on the server: refuse here what would be refused, or changed, there."""
        try:
            kept = self._api.create("jobs", namespace, job, dry_run=True)
        except Refused as fault:
            if fault.status == 409:
                return
            raise
        manifest.check_kept(job, kept)

    def _create(self, namespace: str, job: manifest.Manifest) -> Raw:
        name = str(job["metadata"]["name"])
        try:
            kept = self._api.create("jobs", namespace, job)
        except Refused as fault:
            known = self._api.get("jobs", namespace, name) if fault.status == 409 else None
            if known is None:
                raise
            return known
        try:
            manifest.check_kept(job, kept)
        except UserError:
            self._api.delete("jobs", namespace, name, uid=read_job(kept).uid)
            raise
        return kept

    # --- pods

    def _pods(self, namespace: str, name: str) -> list[PodView]:
        found = self._api.list("pods", namespace, labels=f"job-name={name}")
        return [p for p in map(read_pod, found) if not p.has_ended and p.kill_at is None]

    def _evict(self, namespace: str, pod: PodView) -> bool:
        try:
            return self._api.evict(namespace, pod.name, uid=pod.uid)
        except Refused as fault:
            raise UserError(
                f"pod {pod.name} cannot be evicted: {fault.message}",
                hint="a PodDisruptionBudget may cover it; `kubectl delete pod` gives notice too",
            ) from None

    def _said(self, act: Callable[[], object], what: str) -> None:
        try:
            act()
        except Refused as fault:
            raise Unreachable(f"{what}: {fault.message}") from None


def _needs_secret(job: manifest.Manifest, run_id: str) -> bool:
    container = job["spec"]["template"]["spec"]["containers"][0]
    wanted = names.secret_name(run_id)
    sources = (item.get("secretRef") or {} for item in container.get("envFrom") or ())
    return any(source.get("name") == wanted for source in sources)


def _read_secrets(path: str | None) -> dict[str, str] | None:
    if path is None:
        return None
    try:
        stored = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return {str(k): str(v) for k, v in stored.items()}


def _refuse_stranger(job: Raw, spec: TrainSpec) -> None:
    given = (job.get("metadata") or {}).get("labels") or {}
    if given.get(names.RUN) != spec.run_id:
        raise UserError(
            f"a Job called {spec.key} is there already, and is not of this run",
            hint="remove it, then `qvl-orchestrate controller once`",
        )


def _refusal(fault: Refused) -> QvlError:
    if fault.status == 403 and "exceeded quota" in fault.message:
        return Full(f"the namespace's quota is used up: {fault.message}")
    hint = "`qvl-orchestrate submit job.yaml --dry-run` prints such a manifest"
    if fault.status == 403 and " cannot " in fault.message:
        hint = "is it the right namespace (kubernetes.namespace)? else ask for k8s/rbac.yaml"
    elif fault.status == 404:
        hint = "does the namespace exist? (kubernetes.namespace)"
    return UserError(f"the cluster refuses the Job: {fault.message}", hint=hint)
