"""Collecting the resume contract's facts of this attempt (see domain.resume)."""

from __future__ import annotations

import errno
import hashlib
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.contract import layout
from orchestrator.contract.dataset import media_of, read_index
from orchestrator.contract.jsonio import (
    MalformedJson,
    canonical,
    digest,
    pretty,
    seal,
    to_json,
    unseal,
)
from orchestrator.contract.manifest import CHECKPOINT_FORMAT
from orchestrator.contract.regular import open_regular, read_regular
from orchestrator.contract.resolved import DataSpec, ResolvedJob
from orchestrator.domain.resume import flatten
from orchestrator.errors import DataFault, StorageError, UserError
from orchestrator.storage.protocol import NotFound, Storage

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
}


def declared(job: ResolvedJob) -> dict[str, Any]:
    """The facts that the job itself declares, the same on every machine."""
    return {
        "world.nodes": job.resources.nodes,
        "world.gpus_per_node": job.resources.gpus_per_node,
        "world.zero_stage": job.zero_stage,
        "global_batch": job.batch.global_batch,
        **flatten(to_json(job), "config"),
        **flatten(dict(job.quantization), "quantization"),
    }


def collect(job: ResolvedJob, storage: Storage) -> dict[str, Any]:
    """All facts that can be known before the model is loaded. Raises UserError."""
    facts: dict[str, Any] = {
        "checkpoint_format": CHECKPOINT_FORMAT,
        "package.qvl-orchestrate": __version__,
        "python.version": platform.python_version(),
        **declared(job),
    }
    facts |= {f"version.{name}": _version(name) for name in PACKAGES}
    try:
        facts |= model_facts(job, storage)
        facts |= data_facts(job.data)
        facts["code.digest"] = tree_digest(Path(p) for p in job.code)
    except (OSError, ValueError) as fault:
        kind = StorageError if _passes(fault) else UserError
        raise kind(f"model, data or code cannot be read: {fault}") from fault
    return facts


def _passes(fault: Exception) -> bool:
    """True for what a file system says now and not the next time: no mistake of the user's."""
    return isinstance(fault, OSError) and fault.errno in PASSING


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def model_facts(job: ResolvedJob, storage: Storage) -> dict[str, Any]:
    """Revision of a hub model, or one digest over the files of a local folder."""
    folder = Path(job.model.path)
    if not folder.is_dir():
        return {"model.revision": job.model.revision, "model.id": job.model.path}
    known = _read_cache(storage)
    files: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        cached = known.get(str(path))
        if not _holds(cached, stamp):
            cached = {"stamp": stamp, "sha256": file_sha256(path)}
        files[name] = cached
    cache = {str(folder / name): entry for name, entry in files.items()}
    if cache != known:
        storage.put(layout.BASE_CACHE, pretty(seal(cache)))
    hashes = {name: entry["sha256"] for name, entry in files.items()}
    return {"model.digest": digest(hashes)}


def _holds(cached: Any, stamp: list[int]) -> bool:
    if not isinstance(cached, dict) or not isinstance(cached.get("sha256"), str):
        return False
    return bool(cached.get("stamp") == stamp)


def _read_cache(storage: Storage) -> dict[str, Any]:
    try:
        cache = unseal(storage.get(layout.BASE_CACHE))
    except (NotFound, MalformedJson):
        return {}
    return cache if isinstance(cache, dict) else {}


def data_facts(data: DataSpec) -> dict[str, Any]:
    """Digest of each index file, and one over all media they name."""
    facts: dict[str, Any] = {}
    media: set[str] = set()
    for which, index in (("train", data.train), ("eval", data.eval)):
        if index is None:
            continue
        try:
            content = read_regular(index)
            records = read_index(content)
        except (OSError, ValueError) as fault:
            if _passes(fault):
                raise
            raise DataFault(f"{index}: {fault}") from None
        facts[f"data.{which}"] = hashlib.sha256(content).hexdigest()
        root = Path(data.media_root or Path(index).parent)
        media.update(str(root / name) for record in records for name in media_of(record))
    facts["data.media"] = _media_digest(sorted(media), full=data.fingerprint == "full")
    return facts


def _media_digest(paths: Iterable[str], *, full: bool) -> str:
    """SHA-256 over path and size (and contents if `full`) of every medium."""
    total = hashlib.sha256()
    for path in paths:
        try:
            size = Path(path).stat().st_size
            content = file_sha256(Path(path)) if full else None
        except OSError as fault:
            if _passes(fault):
                raise
            size, content = -1, None
        except ValueError:  # a NUL, or half a character: no file can have this name
            size, content = -1, None
        name = path.encode(errors="backslashreplace").decode()
        total.update(canonical([name, size, content]))
    return total.hexdigest()


def tree_digest(roots: Iterable[Path]) -> str | None:
    """SHA-256 over names and contents of files; None if there are none to compare."""
    total = hashlib.sha256()
    found = False
    for root in roots:
        for path in _files(root):
            found = True
            name = path.relative_to(root.parent).as_posix()
            total.update(canonical([name, file_sha256(path)]))
    return total.hexdigest() if found else None


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inner)
        if path.is_file() and not hidden:
            yield path


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's contents."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
