"""Whose run directories are acted upon. Anybody's may be read; what executes on the word of one,
with the rights of this user, needs an owner who is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract import layout
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.controller.run import Run
from orchestrator.errors import StorageError, UserError
from orchestrator.registry.store import NOBODY, STORE
from orchestrator.run_directory import attempts
from orchestrator.storage.ownership import foreign_hands, name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Whom a controller trusts besides its own user and root: what a site file names."""

    roots: tuple[str, ...] = ()
    """Paths and URIs below which every run directory is believed."""
    uids: tuple[int, ...] = ()


ONLY_US = Trusted()


def require(run: Run, trusted: Trusted = ONLY_US) -> None:
    """Raise UserError where somebody else decides what this run executes."""
    found = objection(run, trusted)
    if found is not None:
        raise UserError(
            f"run {run.run_id} is only read here: {found}",
            hint=f"`qvl-orchestrate adopt --trust {run.run_id}` shows what it would run, and asks",
        )


def objection(run: Run, trusted: Trusted = ONLY_US) -> str | None:
    """Why the run is only to be read, in words; None if it may be acted upon."""
    uri = run.entry.uri
    folder = _folder(run)
    if any(_below(str(folder or uri), root) for root in trusted.roots):
        return None
    said = run.registry.trusted_owner(run.run_id, uri)
    if folder is None:
        # Those that were entered before anybody was asked have been acted upon ever since.
        return None if said in (STORE, None) else "an object store does not say who wrote it"
    try:
        if said == folder.stat().st_uid:
            return None
        files = [folder / layout.RESOLVED, *folder.glob("resolved-*.json")]
        files += (folder / layout.SUBMISSIONS).glob("*.json")
        return foreign_hands(folder, files, trusted.uids)
    except FileNotFoundError:  # whoever looks for it says so
        return None
    except OSError as fault:
        raise StorageError(f"{folder}: {fault.strerror or fault}") from fault


def believe(run: Run) -> None:
    """From now on, for as long as the run directory has the owner that it has now."""
    folder = _folder(run)
    owner = STORE if folder is None else folder.stat().st_uid
    run.registry.trust(run.run_id, run.entry.uri, owner)


def only_read(run: Run) -> None:
    """Nobody said that the run may be acted upon: its owner decides (objection)."""
    run.registry.trust(run.run_id, run.entry.uri, NOBODY)


def interpreter(run: Run, job: ResolvedJob) -> tuple[str | None, Mapping[str, str]]:
    """Interpreter and variables of the job, for a tool that runs on this machine.

    Raises UserError where it names some, and is not to be trusted.
    """
    if job.python is not None or job.env:
        require(run)
    return job.python, job.env


def shown(run: Run) -> dict[str, Any]:
    """What a controller would start for this run: for a person, before it is trusted."""
    spec = attempts.read_submissions(run.storage)[-1].spec
    job = run.job(spec.resolved)
    folder = _folder(run)
    block = dict(job.slurm if job.backend == "slurm" else job.kubernetes)
    return {
        "run_id": run.run_id,
        "run_dir": run.entry.uri,
        "owner": None if folder is None else name_of(folder.stat().st_uid),
        "backend": job.backend,
        "python": spec.python,
        "trainer": spec.trainer_module,
        "env": dict(spec.env),
        "secrets": list(job.secrets),
        "code": list(job.code),
        "model": job.model.path,
        "backend_settings": block,
    }


def _folder(run: Run) -> Path | None:
    """The run directory itself, links followed; None on an object store."""
    local = run.storage.local_path(layout.RESOLVED)
    return None if local is None else local.parent.resolve()


def _below(place: str, root: str) -> bool:
    base = root if "://" in root else str(Path(root).resolve())
    return place == base.rstrip("/") or place.startswith(base.rstrip("/") + "/")
