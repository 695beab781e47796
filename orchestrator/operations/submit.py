"""Submitting: a new run from a resolved job. Each step may be repeated or cut off."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.backends.base import RemembersRuns, Submission, load_backend
from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.contract.records import SubmissionRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartFrom, TrainSpec
from orchestrator.controller import status_rows, trust
from orchestrator.controller.reconcile import hand_over, secrets_path, with_key
from orchestrator.controller.run import Run
from orchestrator.errors import Full, StorageError, Unreachable, UserError
from orchestrator.operations.preflight import check_storage
from orchestrator.operations.removal import withdrawn_on_failure
from orchestrator.registry import faults
from orchestrator.registry.store import Registry, RunEntry
from orchestrator.run_directory import attempts
from orchestrator.storage.opening import child, open_storage
from orchestrator.storage.protocol import Created, Storage, Taken

REPORT_S = 10.0
"""`TrainSpec.report_s` on a cluster, where each report is a write to shared storage."""


COPY_NAME = 30
"""Letters of a job's name that a copy of it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What of the site file the controller needs."""

    max_parallel_runs: int = 1
    node_lost_s: float = 60.0
    group_sharing: bool = False
    local_report_s: float = 1.0
    """`TrainSpec.report_s` of local runs, whose storage is cheap to write."""
    trainer_module: str = "trainer"
    """What each rank runs; tests put a trainer without torch in its place."""


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who submits: a user on this machine, at a site."""

    registry: Registry
    site: SiteSettings
    clock: Clock
    environ: Mapping[str, str]
    """Variables of the user's shell, from which `secrets:` are taken."""


def new_run_id(name: str, now: float) -> str:
    """`<name>-<yymmdd>-<6 random hex digits>`: unique, sortable by eye, a DNS label."""
    day = time.strftime("%y%m%d", time.gmtime(now))
    return f"{name}-{day}-{secrets.token_hex(3)}"


def name_of_copy(name: str, suffix: str) -> str:
    """Name of a job that is another's copy, short enough for every backend."""
    return f"{name[:COPY_NAME].strip('-')}-{suffix}"


def make_spec(
    job: ResolvedJob, run_id: str, storage_uri: str, state_dir: Path, site: SiteSettings
) -> TrainSpec:
    """The TrainSpec of a run's first submission. Pure but for the interpreter's path."""
    local = job.backend == "local"
    return TrainSpec(
        run_id=run_id,
        storage=storage_uri,
        submission=1,
        backend=job.backend,
        nodes=job.resources.nodes,
        gpus_per_node=job.resources.gpus_per_node,
        grace_s=job.preemption.grace_s,
        python=job.python or sys.executable,
        trainer_module=site.trainer_module,
        env=dict(job.env),
        secrets_file=str(secrets_path(state_dir, run_id)) if job.secrets else None,
        devices_dir=str(state_dir / "devices") if local else None,
        max_parallel_runs=site.max_parallel_runs,
        node_lost_s=site.node_lost_s,
        hang_s=job.hang_s,
        report_s=site.local_report_s if local else REPORT_S,
    )


def dry_run(job: ResolvedJob, by: Submitter) -> Submission:
    """Exactly what `submit` would hand to the backend (with another random run id).

    Raises as `submit`, for secrets that are missing and a storage that takes no writes too.
    """
    collect_secrets(job, by.environ)
    check_storage(job.checkpoint.uri)
    run_id = new_run_id(job.name, by.clock.now())
    state_dir = by.registry.state_dir
    spec = make_spec(job, run_id, child(job.checkpoint.uri, run_id), state_dir, by.site)
    return load_backend(job.backend, state_dir).prepare(job, spec)


def submit(
    job: ResolvedJob,
    job_text: str,
    by: Submitter,
    *,
    start: StartFrom = StartFrom(),  # noqa: B008 - frozen
    allow_change: Sequence[str] = (),
) -> Run:
    """Create the run directory, enter the run, hand the first submission to the backend.

    start: its ref, if any, is a checkpoint outside of the run
    allow_change: fields that may differ from that checkpoint's

    Raises UserError for what the user must mend, StorageError and Unreachable for what
    does not answer; nothing of the run is then left. One that was killed on the way can be
    taken up by `controller once`.
    """
    values = collect_secrets(job, by.environ)
    job = with_template(job)
    run_id = new_run_id(job.name, by.clock.now())
    uri = child(job.checkpoint.uri, run_id)
    storage = open_storage(uri, group_sharing=by.site.group_sharing)
    probe(storage)
    spec = make_spec(job, run_id, uri, by.registry.state_dir, by.site)
    spec = replace(spec, allow_change=tuple(allow_change))
    backend = load_backend(job.backend, by.registry.state_dir)
    prepared = backend.prepare(job, spec)
    entry = RunEntry(
        run_id=run_id,
        name=job.name,
        backend=job.backend,
        uri=uri,
        created_at=by.clock.now(),
        gpus=job.resources.world_size,
    )
    run = Run(entry, by.registry, storage, backend, by.clock)
    with withdrawn_on_failure(run, job):
        storage.put(layout.JOB, job_text.encode())
        attempts.write_job(storage, job)
        if values:
            write_secrets(by.registry.state_dir, run_id, values)
        by.registry.add(entry)
        trust.believe(run)
        controller_first(run, job, spec)
        start_submission(run, prepared, start, reason="submit")
    return run


def with_template(job: ResolvedJob) -> ResolvedJob:
    """The job with the text of its template, so that later submissions of the run use the same.

    Raises UserError for a template that cannot be read.
    """
    if job.backend == "local":
        return job
    from orchestrator.templates.find import BACKENDS, with_frozen

    kind, name = BACKENDS[job.backend]
    if job.backend == "slurm":
        return replace(job, slurm=with_frozen(kind, name, job.slurm))
    return replace(job, kubernetes=with_frozen(kind, name, job.kubernetes))


def controller_first(run: Run, job: ResolvedJob, spec: TrainSpec) -> None:
    """Start the run's controller where it is a Job of its own: a run that nobody looks after
    would end with its first attempt. Unreachable if it cannot be started.
    """
    if isinstance(run.backend, RemembersRuns) and job.kubernetes.get("controller") == "job":
        try:
            run.backend.start_controller(job, spec)
        except Unreachable as fault:
            raise Unreachable(
                f"no controller could be started, so nothing was submitted: {fault.message}",
                hint=fault.hint,
            ) from None


def start_submission(
    run: Run,
    prepared: Submission,
    start: StartFrom,
    *,
    reason: str,
    reset_batch_plan: bool = False,
) -> SubmissionRecord:
    """Create `submissions/<m>.json` of what the backend has prepared, and hand it over."""
    spec = prepared.spec
    _check_reach(run, run.job(spec.resolved))
    record = SubmissionRecord(
        number=spec.submission,
        key="",
        token="",
        spec=spec,
        start=start,
        reason=reason,
        reset_batch_plan=reset_batch_plan,
        template=prepared.template,
        template_sha256=prepared.template_sha256,
        time=iso(run.clock.now()),
    )
    record = with_key(run, record)
    other = attempts.create_submission(run.storage, record)
    if other is not None:
        raise StorageError(
            f"somebody else has just submitted run {run.run_id} (submission {other.number})",
            hint="look at `qvl-orchestrate status`, then try again",
        )
    known = run.registry.find(run.run_id).row or status_rows.blank_row(run.entry)
    job = None
    try:
        job = hand_over(run, record, prepared)
        row = status_rows.submitted_row(known, job)
    except Full as fault:
        row = status_rows.waiting_row(known, fault.message)
    run.registry.saw(run.run_id, row, final=False, at=run.clock.now())
    made_from = {}
    if record.template is not None:
        made_from = {"template": record.template, "template_sha256": record.template_sha256}
    run.event(
        "submitted",
        {"submission": record.number, "backend_id": job and job.id, "reason": reason, **made_from},
        writer="cli",
    )
    return record


def _check_reach(run: Run, job: ResolvedJob) -> None:
    """Refuse what could not even read its run directory (UserError)."""
    local = run.storage.local_path(layout.RESOLVED)
    if job.backend == "kubernetes" and local is not None:
        from orchestrator.backends.kubernetes.ownership import refuse_other_user

        refuse_other_user(job.kubernetes, local.parent, os.getuid())


def probe(storage: Storage) -> None:
    """Refuse a storage whose create-if-absent does not hold (UserError)."""
    name = f"cache/probe-{secrets.token_hex(8)}"
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    won = storage.create(name, first)
    try:
        lost = storage.create(name, second)
    finally:
        storage.delete(name)
    if not isinstance(won, Created) or not isinstance(lost, Taken) or lost.by != first:
        raise UserError(
            f"{storage.uri} cannot create a file only if it is absent",
            hint="runs are safe only on a storage with this property: choose another "
            "checkpoint.uri",
        )


def collect_secrets(job: ResolvedJob, environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the variables that `secrets:` names, from the submitter's environment."""
    missing = [name for name in job.secrets if name not in environ]
    if missing:
        raise UserError(
            f"secrets not set in this shell: {', '.join(missing)}",
            hint=f"export {missing[0]}=... before `submit`",
        )
    return {name: environ[name] for name in job.secrets}


def write_secrets(state_dir: Path, run_id: str, values: Mapping[str, str]) -> None:
    """Store secret values 0600 outside the run directory; those that are there stay if it fails."""
    path = secrets_path(state_dir, run_id)
    scratch = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(dict(values), file)
        scratch.replace(path)
    except OSError as fault:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise faults.of_files(state_dir, fault) from fault
