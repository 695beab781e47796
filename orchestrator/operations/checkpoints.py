"""What a person can do with the checkpoints of a run: find, verify, pull, prune."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.contract import layout
from orchestrator.contract.manifest import FileEntry
from orchestrator.contract.records import LogRecord
from orchestrator.controller.observe import observe
from orchestrator.controller.run import Run
from orchestrator.domain.selection import best, to_retire
from orchestrator.errors import CheckpointError, NotOwner, UserError
from orchestrator.operations.actions import is_live
from orchestrator.run_directory import checkpoints, private_folder
from orchestrator.run_directory.evaluations import read_evaluations
from orchestrator.run_directory.log_integrity import require_whole
from orchestrator.run_directory.runlog import LogView, RunLog
from orchestrator.storage.protocol import HasUploads, PendingUpload, Storage

STATES = {"retire": "retired", "bad": "bad"}
THREADS = 8
"""Files that are read at a time."""

OnFile = Callable[[FileEntry], None]


def states(view: LogView) -> dict[int, str]:
    """`committed`, `retired` or `bad` of each commit by its number in the log, oldest first."""
    found: dict[int, str] = {}
    for record in view.records:
        if record.kind == "commit":
            found[record.seq] = "committed"
        elif record.kind in STATES:
            found[record.retire().commit_seq] = STATES[record.kind]
    return found


def find(view: LogView, step: int | None, attempt: int | None = None) -> LogRecord:
    """The newest usable commit of `step` (None: of any). Raises CheckpointError saying why not."""
    live = checkpoints.live_commits(view)
    fitting = [r for r in live if step in (None, r.commit().step) and attempt in (None, r.attempt)]
    if fitting:
        return fitting[-1]
    wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    for record in reversed(view.records):
        if record.kind in STATES and _step_of(view, record) == step and step is not None:
            raise CheckpointError(
                f"{wanted} any more: {STATES[record.kind]} ({record.retire().reason})"
            )
    there = ", ".join(str(r.commit().step) for r in live) or "none"
    raise CheckpointError(wanted, hint=f"committed steps: {there}")


def _step_of(view: LogView, record: LogRecord) -> int | None:
    seq = record.retire().commit_seq
    return next(
        (r.commit().step for r in view.records if r.seq == seq and r.kind == "commit"), None
    )


def is_elsewhere(storage: Storage, record: LogRecord) -> bool:
    """Committed on a node's own disk, and not brought to the run's storage yet."""
    body = record.commit()
    return body.tier == "local" and not checkpoints.is_there(storage, body.directory)


# --- pull


def pull(run: Run, record: LogRecord, folder: Path, on_file: OnFile) -> Path:
    """A verified copy as `folder`/checkpoint-<step>, which is there whole or not at all.

    Raises UserError if something has that name, CheckpointError if a file is damaged.
    """
    target = folder / f"checkpoint-{record.commit().step}"
    if target.exists():
        raise UserError(f"{target} exists", hint="remove it, or name another folder")
    half = folder / f".tmp-{target.name}-{secrets.token_hex(4)}"
    try:
        half.mkdir(mode=0o700, parents=True)
    except OSError as fault:
        raise UserError(f"{folder}: {fault.strerror or fault}") from None
    try:
        checkpoints.verify(run.storage, record, threads=THREADS, on_file=on_file, copy_to=half)
        _sync(half)
        half.rename(target)
        _sync_one(folder)
    except OSError as fault:
        raise UserError(f"{target}: {fault.strerror or fault}") from None
    finally:
        private_folder.remove(half)
    return target


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- prune


@dataclass(frozen=True, slots=True)
class Surplus:
    """What a run could do without."""

    retire: Sequence[LogRecord]
    """Checkpoints older than the newest `keep`, of which the newest was read and found right."""
    leftovers: Mapping[str, int]
    """Directories of replaced attempts that no record names, and their bytes."""
    half_written: Sequence[PendingUpload]
    """What writers that died had begun."""

    @property
    def size_bytes(self) -> int:
        return sum(r.commit().size_bytes for r in self.retire) + sum(self.leftovers.values())


def surplus(run: Run, keep: int | None, on_file: OnFile) -> Surplus:
    """What `prune` would remove. keep: None = as the job says.

    Raises LogDamaged where the log is not whole, CheckpointError where the newest
    checkpoint is damaged: then nothing may go.
    """
    view = RunLog(run.storage, run.clock).read()
    require_whole(run.storage, view)
    live = checkpoints.live_commits(view)
    verified = set()
    if live:
        checkpoints.verify(run.storage, live[-1], threads=THREADS, on_file=on_file)
        verified.add(live[-1].seq)
    spec = run.job().checkpoint
    kept = spec.keep_last if keep is None else keep
    evaluations = read_evaluations(run.storage) if spec.keep_best else {}
    pinned = best(live, evaluations, spec.keep_best)
    return Surplus(
        to_retire(live, keep_last=kept, verified=verified, pinned=pinned),
        checkpoints.leftovers(run.storage, view, view.fence()),
        _half_written(run.storage, view.fence()),
    )


def _half_written(storage: Storage, fence: int) -> list[PendingUpload]:
    """Of attempts that have been replaced."""
    if not isinstance(storage, HasUploads):
        return []
    replaced = tuple(layout.attempt_dir(n) for n in range(1, fence))
    return [u for u in storage.uploads() if u.path.startswith(replaced)]


def prune(run: Run, keep: int | None, on_file: OnFile) -> Surplus:
    """Remove what `surplus` finds; what was removed. Refuses (UserError) while a job is there."""
    if is_live(observe(run).facts):
        raise UserError(
            f"run {run.run_id} is at work and removes its old checkpoints itself",
            hint="--dry-run shows what could go; prune when it has ended",
        )
    found = surplus(run, keep, on_file)
    log = RunLog(run.storage, run.clock)
    attempt = log.read().fence()
    try:
        for record in found.retire:
            checkpoints.retire(run.storage, log, attempt, record, "prune")
    except NotOwner:
        raise UserError(
            f"run {run.run_id} has begun to work again", hint="prune when it has ended"
        ) from None
    for directory in found.leftovers:
        checkpoints.remove_files(run.storage, directory)
    if isinstance(run.storage, HasUploads):
        for upload in found.half_written:
            run.storage.abort_upload(upload)
    return found
