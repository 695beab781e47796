"""What a person can ask of a run: preempt, cancel, resume, remove."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.backends.base import RemembersRuns
from orchestrator.clock import iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical
from orchestrator.contract.records import LogRecord
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartFrom, StartKind, TrainSpec
from orchestrator.controller import lease, status_rows, trust
from orchestrator.controller.observe import Seen, observe
from orchestrator.controller.reconcile import forget_secrets, secrets_path
from orchestrator.controller.run import Run
from orchestrator.domain.facts import RunFacts
from orchestrator.domain.states import State
from orchestrator.errors import CheckpointError, RecordDamaged, UserError
from orchestrator.operations import preflight, removal
from orchestrator.operations.submit import (
    collect_secrets,
    controller_first,
    start_submission,
    with_template,
    write_secrets,
)
from orchestrator.run_directory import attempts
from orchestrator.run_directory.checkpoints import live_commits, read_manifest
from orchestrator.run_directory.log_integrity import require_whole
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import NotFound

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
LEAVE_S = 5.0
"""How long `remove` waits for the last processes of a run that has ended."""


def is_live(facts: RunFacts) -> bool:
    """True while a job of the run may be at work."""
    return facts.backend in ("pending", "running", "unknown")


def preempt(run: Run, signal: str, ranks: Sequence[int] = ()) -> None:
    """Deliver a notice as the scheduler would: to the agent, or to some ranks only.

    Raises UserError if nothing runs.
    """
    trust.require(run)
    seen = observe(run)
    if not is_live(seen.facts) or seen.job is None:
        raise UserError(f"run {run.run_id} has no job now, so there is nothing to preempt")
    run.event("preempt_requested", {"signal": signal, "ranks": list(ranks)}, writer="cli")
    for rank in ranks or (None,):
        run.backend.notify(seen.job, signal, rank)


def cancel(run: Run) -> bool:
    """Cancel for good: the tombstone first, then the job. False if the run was finished."""
    trust.require(run)
    try:
        seen = observe(run)
    except CheckpointError:
        removal.stop_blindly(run)
        return True
    if seen.facts.done:
        return False
    run.storage.create(layout.TOMBSTONE, canonical({"time": iso(run.clock.now()), "by": "cancel"}))
    run.event("cancelling", {}, writer="cli")
    if seen.job is not None and (is_live(seen.facts) or seen.held):
        run.backend.cancel(seen.job)
    return True


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a resume has done."""

    submission: int
    unchecked: tuple[str, ...]
    """What was not looked at before the queue."""


def resume(
    run: Run,
    *,
    ref: str | None = None,
    restart_from: StartKind | None = None,
    allow_change: Sequence[str] = (),
    reset_batch_plan: bool = False,
    job: ResolvedJob | None = None,
) -> Resumed:
    """Submit the run again.

    `ref`: None or `latest`, a checkpoint's name (`checkpoint-20`) or directory, or an
    absolute path. `restart_from`: `weights` or `scratch`. `job`: a changed job file, whose
    differences `allow_change` must permit.

    Raises UserError while a job is at work, and what `preflight` finds.
    """
    trust.require(run)
    seen = observe(run)
    newest = seen.newest
    if newest is None and seen.damaged:
        raise RecordDamaged(seen.facts.damage)
    if newest is None:
        raise UserError(f"run {run.run_id} was never submitted", hint="submit the job again")
    if is_live(seen.facts):
        raise UserError(
            f"run {run.run_id} is at work already (job {seen.backend_id})",
            hint=f"`qvl-orchestrate preempt {run.run_id}` makes it save and start again",
        )
    if seen.facts.done:
        raise UserError(f"run {run.run_id} is finished", hint="submit the job as a new run")
    require_whole(run.storage, seen.view)
    start = _start(seen, newest.start, ref, restart_from)
    number = seen.facts.newest_submission + 1
    allowed = tuple(dict.fromkeys((*newest.spec.allow_change, *allow_change)))
    spec = replace(newest.spec, submission=number, allow_change=allowed)
    if job is not None:
        job = with_template(job)
        spec = _changed_spec(run, spec, job)
    in_force = job or run.job(spec.resolved)
    preflight.check_start(run, seen.view, start, in_force, allowed)
    unchecked = tuple(preflight.check_data(in_force, run.clock))
    spec = _with_secrets(run, spec, in_force)
    prepared = run.backend.prepare(in_force, spec)
    if job is not None:
        attempts.write_job(run.storage, job, spec.resolved)
    controller_first(run, in_force, spec)
    _reopen(run)
    run.event(
        "resume_requested",
        {"from": start.ref or start.kind, "allow_change": list(allow_change)},
        writer="cli",
    )
    start_submission(run, prepared, start, reason="resume", reset_batch_plan=reset_batch_plan)
    return Resumed(number, unchecked)


def _changed_spec(run: Run, spec: TrainSpec, job: ResolvedJob) -> TrainSpec:
    """What of a changed job file travels with the submission; the run's place cannot change."""
    if job.backend != run.entry.backend:
        raise UserError(
            f"run {run.run_id} belongs to backend {run.entry.backend}, not {job.backend}",
            hint="submit the job as a new run",
        )
    return replace(
        spec,
        resolved=f"resolved-{spec.submission:06d}.json",
        nodes=job.resources.nodes,
        gpus_per_node=job.resources.gpus_per_node,
        grace_s=job.preemption.grace_s,
        python=job.python or spec.python,
        env=dict(job.env),
    )


def _with_secrets(run: Run, spec: TrainSpec, job: ResolvedJob) -> TrainSpec:
    """The spec with the job's secrets at hand: from this shell, or as they were stored.

    They are forgotten when a run is cancelled, so that resuming it needs them anew.
    """
    if not job.secrets:
        return replace(spec, secrets_file=None)
    path = secrets_path(run.registry.state_dir, run.run_id)
    stored = spec.secrets_file is not None and path.exists()
    if not stored or all(name in os.environ for name in job.secrets):
        write_secrets(run.registry.state_dir, run.run_id, collect_secrets(job, os.environ))
    return replace(spec, secrets_file=str(path))


def _reopen(run: Run) -> None:
    """No longer final or cancelled: controllers and `status` look at the run again."""
    before = run.entry.row or status_rows.blank_row(run.entry)
    news = {"state": State.QUEUED.value, "reason": None, "message": None, "next": None}
    news |= {status_rows.RECORDED: State.QUEUED.value}
    run.registry.saw(run.run_id, {**before, **news}, final=False, at=run.clock.now())
    run.storage.delete(layout.TOMBSTONE)


def _start(
    seen: Seen, before: StartFrom, ref: str | None, restart_from: StartKind | None
) -> StartFrom:
    after = seen.view.last_seq
    if restart_from is not None:
        where = None if ref in (None, "latest") else _resolve_ref(seen, str(ref))
        return StartFrom(kind=restart_from, ref=where, after_seq=after)
    if ref is None or ref == "latest":
        return before if ref is None else StartFrom()
    return StartFrom(kind="checkpoint", ref=_resolve_ref(seen, ref), after_seq=after)


def _resolve_ref(seen: Seen, ref: str) -> str:
    if ref.startswith(("/", ".")):
        path = Path(ref).absolute()
        if not path.is_dir():
            raise CheckpointError(f"{path} is no checkpoint directory")
        return str(path)
    if "://" in ref:
        root, _, name = ref.rstrip("/").rpartition("/")
        read_manifest(open_storage(root), name, None)
        return ref.rstrip("/")
    return find_commit(live_commits(seen.view), ref).commit().directory


def find_commit(live: Sequence[LogRecord], ref: str) -> LogRecord:
    """The newest commit called `ref`: a step, `checkpoint-<step>` or a whole directory."""
    step = ref.removeprefix("checkpoint-")
    for record in reversed(live):
        body = record.commit()
        names = (str(body.step), body.directory, body.directory.rsplit("/", 1)[-1])
        if ref in names or step in names:
            return record
    known = ", ".join(dict.fromkeys(r.commit().directory.rsplit("/", 1)[-1] for r in live))
    raise CheckpointError(
        f"the run has no checkpoint {ref!r}", hint=f"it has: {known or 'none yet'}"
    )


def remove(run: Run, *, keep_adapter: Path | None = None) -> None:
    """Delete the run directory and forget the run. Refuses while anybody is at work on it.

    A directory that is damaged, or gone already, is no hindrance.
    """
    try:
        seen = _when_left(run)
    except CheckpointError:
        if keep_adapter is not None:
            raise
        removal.remove_blindly(run)
        return
    if keep_adapter is not None:
        copy_adapter(run, seen, keep_adapter)
    forget_secrets(run, seen)
    if seen.backend_id is not None and isinstance(run.backend, RemembersRuns):
        run.backend.forget_run(run.run_id, seen.backend_id)
    removal.remove_directory(run.storage)
    run.registry.remove(run.run_id)


def _when_left(run: Run) -> Seen:
    """What is seen once no job and no controller is there; one that ended may take a moment."""
    end = run.clock.monotonic() + LEAVE_S
    while True:
        seen = observe(run)
        at_work = is_live(seen.facts)
        if not at_work and not lease.is_live(lease.newest(run.storage), run.clock.now()):
            return seen
        ending = not at_work or seen.facts.done or seen.facts.tombstone
        if not ending or run.clock.monotonic() >= end:
            raise removal.at_work(run)
        run.clock.sleep(0.1)


def copy_adapter(run: Run, seen: Seen, target: Path) -> None:
    """Copy the newest adapter to `target`. Raises CheckpointError if there is none."""
    live = live_commits(seen.view)
    if not live:
        raise CheckpointError(f"run {run.run_id} has no checkpoint to keep the adapter of")
    found = {}
    for name in ADAPTER_FILES:
        try:
            found[name] = run.storage.get(f"{live[-1].commit().directory}/{name}")
        except NotFound as fault:
            raise CheckpointError(f"the newest checkpoint has no {name}") from fault
    target.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        (target / name).write_bytes(data)


def cancelled(run: Run) -> bool:
    """True once the tombstone stands."""
    return attempts.has_tombstone(run.storage)
