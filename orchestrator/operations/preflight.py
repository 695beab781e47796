"""What is known before the queue: what would be refused on the node is refused at once.

Only what this machine sees in a second or two is looked at; the rest is named.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.contract.dataset import media_of, read_index
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.regular import open_regular
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import StartFrom
from orchestrator.controller.run import Run
from orchestrator.domain.resume import compare, refusal
from orchestrator.domain.selection import candidates
from orchestrator.errors import CheckpointError, ContractRefused, StorageError, UserError
from orchestrator.run_directory import resume_facts
from orchestrator.run_directory.checkpoints import live_commits, read_manifest
from orchestrator.run_directory.node_copies import check_adapter
from orchestrator.run_directory.runlog import LogView
from orchestrator.storage.opening import is_remote, open_storage
from orchestrator.storage.posix import PosixStorage

SAMPLE = 64
"""Pictures of one index file that are looked for."""
SAMPLE_S = 1.0
"""Seconds after which no further picture is looked for."""
INDEX_BYTES = 64 << 20
"""Index files above this size are left to `data check`."""
_DECLARED = ("config.", "quantization.", "world.")


def check_data(job: ResolvedJob, clock: Clock) -> Iterator[str]:
    """Look for a sample of the pictures; yields what was not looked at, a line each.

    Raises UserError if so many are missing that the run cannot succeed.
    """
    for which, index in (("train", job.data.train), ("eval", job.data.eval)):
        if index is None:
            continue
        file = Path(index)
        if job.backend == "kubernetes" and not file.exists():
            yield f"data.{which}: {index} is seen by the pods only"
        elif file.exists() and file.stat().st_size > INDEX_BYTES:
            yield f"data.{which}: the pictures that {index} names, a large file"
        else:
            yield from _look(job, which, file, clock)


def check_storage(uri: str) -> None:
    """Raise where no run directory could be made at `uri`. Nothing is left there."""
    if is_remote(uri):
        name = f"probe-{secrets.token_hex(8)}"
        storage = open_storage(uri)
        try:
            storage.create(name, b"")
        finally:
            storage.delete(name)
        return
    folder = Path(uri.removeprefix("file://"))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"checkpoint.uri: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"checkpoint.uri: nothing can be written to {folder}",
            hint="name a folder that is yours",
        )


def check_start(
    run: Run, view: LogView, start: StartFrom, job: ResolvedJob, allowed: Sequence[str]
) -> None:
    """Compare with the checkpoint that the run would go on from what its job declares.

    Raises ContractRefused with the difference and the flags that would allow it, CheckpointError
    for a folder that is no checkpoint. What only the node knows (versions, the model's bytes, the
    pictures) is compared there, as all of this is once more.
    """
    found = _first_choice(run, view, start)
    if found is None:
        return
    name, manifest = found
    now = {**resume_facts.declared(job), **_files_here(job)}
    saved = {k: v for k, v in manifest.facts.items() if k in now or k.startswith(_DECLARED)}
    text = refusal(compare(saved, now, allowed=allowed), name)
    if text is not None:
        raise ContractRefused(text)


def _first_choice(
    run: Run, view: LogView, start: StartFrom
) -> tuple[str, CheckpointManifest] | None:
    """Name and manifest of what an attempt tries first; None where there is nothing to compare,
    or it cannot be read now, which an attempt may pass over.
    """
    options = candidates(live_commits(view), start)
    if options.commits:
        commit = options.commits[0].commit()
        try:
            return commit.directory, read_manifest(
                run.storage, commit.directory, commit.manifest_hash
            )
        except (CheckpointError, StorageError):
            return None
    ref = start.ref
    if start.kind == "weights" and ref is not None and ref.startswith("/"):
        check_adapter(Path(ref))
    if start.kind != "checkpoint" or ref is None:
        return None
    if "://" in ref:
        root, _, name = ref.rpartition("/")
        return ref, read_manifest(open_storage(root), name, None)
    if ref.startswith("/"):
        return ref, read_manifest(PosixStorage(Path(ref).parent), Path(ref).name, None)
    known = [r.commit() for r in live_commits(view) if r.commit().directory == ref]
    return (ref, read_manifest(run.storage, ref, known[-1].manifest_hash)) if known else None


def _files_here(job: ResolvedJob) -> Mapping[str, Any]:
    """Facts of index files and code, as far as this machine surely sees what the node sees."""
    if job.backend == "kubernetes":
        return {}
    found: dict[str, Any] = {}
    # What is not here the node may see all the same: it compares once more.
    with suppress(OSError):
        for which, index in (("train", job.data.train), ("eval", job.data.eval)):
            if index is not None and Path(index).stat().st_size <= INDEX_BYTES:
                found[f"data.{which}"] = resume_facts.file_sha256(Path(index))
    code = [Path(path) for path in job.code]
    with suppress(OSError):
        if all(path.exists() for path in code):
            found["code.digest"] = resume_facts.tree_digest(code)
    return found


def _look(job: ResolvedJob, which: str, file: Path, clock: Clock) -> Iterator[str]:
    try:
        with open_regular(file) as stream:
            records = read_index(stream.read())
    except (OSError, ValueError) as fault:
        raise UserError(f"data.{which}: {file}: {fault}") from None
    root = Path(job.data.media_root or file.parent)
    every = max(1, len(records) // SAMPLE)
    named = (name for record in records[::every] for name in media_of(record))
    names = [name for name in named if "://" not in name and not name.startswith("data:")]
    end = clock.monotonic() + SAMPLE_S
    looked, missing = 0, []
    for name in names[:: max(1, len(names) // SAMPLE)]:
        if clock.monotonic() > end:
            break
        path = root / name
        if job.backend != "local" and Path(name).is_absolute() and not path.parent.exists():
            yield f"data.{which}: {path.parent} is not seen from here"
            break
        looked += 1
        if not _is_file(path):
            missing.append(path)
    _judge(job, which, looked, missing)


def _judge(job: ResolvedJob, which: str, looked: int, missing: Sequence[Path]) -> None:
    """A few missing ones may be replaced, as the job wants it."""
    spare = job.data.max_replaced if job.data.policy == "replace" else 0
    if missing and (len(missing) == looked or len(missing) > spare):
        raise UserError(
            f"data.{which}: {len(missing)} of {looked} pictures that were looked for are missing, "
            f"the first is {missing[0]}",
            hint="`qvl-orchestrate data check job.yaml` names them all",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
