"""Taking a run away: its directory, what is kept of it elsewhere, and its entry.

Also where its records cannot be read any more, and where a submission failed half-way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.backends.base import JobRef, RemembersRuns
from orchestrator.clock import iso
from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.controller import status_rows
from orchestrator.controller.observe import observation
from orchestrator.controller.reconcile import secrets_path
from orchestrator.controller.run import Run
from orchestrator.domain.states import State
from orchestrator.errors import QvlError, StorageError, UserError
from orchestrator.storage.opening import is_remote
from orchestrator.storage.protocol import HasUploads, Storage

REMOVERS = 8
"""Requests at a time that go to a remote storage."""


def directory_gone(uri: str) -> bool:
    """True if a run directory on a file system is not there; object stores are not asked."""
    if is_remote(uri):
        return False
    try:
        return next(Path(uri.removeprefix("file://")).iterdir(), None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def gone(run: Run) -> StorageError:
    """For what needs the directory of a run that has none."""
    return StorageError(
        f"the directory of run {run.run_id} is gone: {run.entry.uri}",
        hint=f"mount its file system if that is away; `qvl-orchestrate rm {run.run_id}` "
        "forgets the run",
    )


def at_work(run: Run) -> UserError:
    """For a run that cannot be removed now."""
    return UserError(
        f"run {run.run_id} is at work", hint=f"first `qvl-orchestrate cancel {run.run_id}`"
    )


@contextmanager
def withdrawn_on_failure(run: Run, job: ResolvedJob) -> Iterator[None]:
    """What is submitted here leaves nothing behind if that fails: no directory and no entry.

    A job that was handed over all the same finds no submission to start, and ends (79).
    """
    try:
        yield
    except (QvlError, OSError, KeyboardInterrupt):
        with suppress(QvlError, OSError):
            remove_directory(run.storage)
        with suppress(QvlError):
            if isinstance(run.backend, RemembersRuns):
                run.backend.forget_run(run.run_id, f"{job.kubernetes.get('namespace') or ''}/")
        with suppress(QvlError, OSError):
            _forget(run, None)
        raise


def remove_blindly(run: Run) -> None:
    """Remove a run whose records cannot be read. Refuses while its job may be at work."""
    if _live_job(run) is not None:
        raise at_work(run)
    if not directory_gone(run.entry.uri):
        remove_directory(run.storage)
    _forget(run, (run.entry.row or {}).get("backend_job_id"))


def stop_blindly(run: Run) -> None:
    """Cancel a run whose records cannot be read: the job that the registry knows of it."""
    now = run.clock.now()
    if not directory_gone(run.entry.uri):
        run.storage.create(layout.TOMBSTONE, canonical({"time": iso(now), "by": "cancel"}))
    job = _live_job(run)
    if job is not None:
        run.backend.cancel(job)
    row = run.entry.row or status_rows.blank_row(run.entry)
    ended = {"state": State.CANCELLED.value, "reason": "cancelled", "next": None}
    run.registry.saw(run.run_id, {**row, **ended}, final=True, at=now)


def remove_directory(storage: Storage) -> None:
    """Everything of a run directory. May be repeated."""
    local = storage.local_path(layout.RESOLVED)
    if local is None:
        _remove_objects(storage)
        return
    try:
        shutil.rmtree(local.parent)
    except FileNotFoundError:
        return
    except OSError as fault:
        raise StorageError(
            f"{fault.filename or local.parent} cannot be removed: {fault.strerror}"
        ) from fault


def _remove_objects(storage: Storage) -> None:
    """Everything of a remote run; what says that it is one goes last, so that a `rm` that was
    cut off can be repeated.
    """
    paths = [e.path for e in storage.list("", deep=True)]
    first = [p for p in paths if p != layout.RESOLVED and not p.startswith(layout.SUBMISSIONS)]
    for some in (first, [p for p in paths if p not in set(first)]):
        with ThreadPoolExecutor(REMOVERS) as pool:
            for _ in pool.map(storage.delete, some):
                pass
    if isinstance(storage, HasUploads):
        for upload in list(storage.uploads()):
            storage.abort_upload(upload)


def _live_job(run: Run) -> JobRef | None:
    """The job that the registry knows of the run, if it may be at work."""
    job = status_rows.job_of(run.entry.row or {})
    if job is None:
        return None
    seen = observation(run, job)
    ended = seen.phase == "gone" or (seen.phase == "unknown" and seen.forgotten)
    return None if ended else job


def _forget(run: Run, backend_id: str | None) -> None:
    """What is kept of the run outside of its directory, its entry last."""
    if backend_id is not None and isinstance(run.backend, RemembersRuns):
        run.backend.forget_secrets(run.run_id, backend_id)
        run.backend.forget_run(run.run_id, backend_id)
    secrets_path(run.registry.state_dir, run.run_id).unlink(missing_ok=True)
    run.registry.remove(run.run_id)
