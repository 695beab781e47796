"""Registry entries out of run directories: the registry is an index that can be rebuilt."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.clock import parse_iso
from orchestrator.contract import layout
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import UserError
from orchestrator.registry.store import RunEntry
from orchestrator.run_directory.attempts import read_job, read_submissions
from orchestrator.storage.opening import is_remote, open_storage
from orchestrator.storage.protocol import NotFound, Storage

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""It becomes a part of paths, of names on a backend and of commands."""


def read_entry(directory: str) -> RunEntry:
    """The entry of the run whose directory this is, a path or a URI.

    Raises UserError if it is no run directory, or one that was moved or copied: jobs of
    that run would go on writing to where it was.
    """
    where = directory.rstrip("/") if "://" in directory else str(Path(directory).absolute())
    if not is_remote(where) and not Path(where).is_dir():
        raise UserError(f"{where} is no directory")
    storage = open_storage(where)
    job = _read_job(storage)
    submissions = read_submissions(storage)
    if not submissions:
        raise UserError(f"the run in {where} was never submitted", hint="submit its job.yaml again")
    newest = submissions[-1].spec
    if not _RUN_ID.fullmatch(newest.run_id):
        raise UserError(f"{where}: {newest.run_id!r} is no run id")
    if not _same_place(newest.storage, where):
        raise UserError(
            f"{where} is not where run {newest.run_id} lives ({newest.storage})",
            hint="move the directory back; to go on elsewhere, submit a new run and "
            "`resume` it --from a checkpoint's path",
        )
    return RunEntry(
        run_id=newest.run_id,
        name=job.name,
        backend=job.backend,
        uri=newest.storage,
        created_at=parse_iso(submissions[0].time),
        gpus=job.resources.world_size,
    )


def _same_place(one: str, other: str) -> bool:
    if is_remote(one) or is_remote(other):
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).resolve() == Path(other).resolve()


def _read_job(storage: Storage) -> ResolvedJob:
    try:
        return read_job(storage)
    except NotFound:
        raise UserError(
            f"{storage.uri} is no run directory: it has no {layout.RESOLVED}",
            hint="name directories like <checkpoint.uri>/<run_id>",
        ) from None
