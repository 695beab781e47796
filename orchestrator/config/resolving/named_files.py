"""A look at the files that a job names: what is missing, or is not what it should be."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.checks.job import is_hub_id
from orchestrator.config.faults import Fault, Place, locate
from orchestrator.config.faults import Path as FieldPath
from orchestrator.config.models.job import JobSpec
from orchestrator.config.reading.document import parse, read_small
from orchestrator.config.resolving.job import absolute, batch_plan, deepspeed_faults
from orchestrator.contract.jsonio import canonical
from orchestrator.contract.regular import open_regular
from orchestrator.errors import JobFileError

WHOLE_INDEX_BYTES = 64 * 1024 * 1024
"""Index files up to this size are parsed as a whole; of larger ones the beginning is looked at."""

_RELATIVE = "paths are relative to the job file"


def read_deepspeed(job: JobSpec, base_dir: Path) -> tuple[Any, tuple[Fault, ...]]:
    """The parsed file that `deepspeed.config` names (None = none), and what is wrong with it."""
    name = job.deepspeed.config
    if name is None:
        return None, ()
    path: FieldPath = ("deepspeed", "config")
    try:
        data = json.loads(read_small(Path(absolute(name, base_dir)), name, _RELATIVE))
        canonical(data)  # neither NaN nor half a character
    except JobFileError as fault:
        return None, (Fault(path, fault.message, fault.hint),)
    except (ValueError, RecursionError) as fault:
        return None, (Fault(path, f"{name}: not JSON: {fault}"),)
    if not isinstance(data, dict) or not data:
        return None, (Fault(path, f"{name}: must be a JSON object with settings"),)
    return data, ()


def deepspeed_file_faults(
    job: JobSpec, base_dir: Path, config: Mapping[str, Any], shown: str
) -> tuple[Fault, ...]:
    """Contradictions between the parsed DeepSpeed file and the job, placed in that file."""
    places: Mapping[FieldPath, Place] = {(): Place(shown)}
    with contextlib.suppress(JobFileError):  # lines only where the JSON is YAML too
        file = Path(absolute(str(job.deepspeed.config), base_dir))
        places = parse(read_small(file, shown), shown).places
    return locate(deepspeed_faults(job, config), places)


def is_hub_model(job: JobSpec, base_dir: Path) -> bool:
    """True if `model.path` is an id on the hub: `owner/name`, and no such folder."""
    path = job.model.path
    return is_hub_id(path) and not Path(absolute(path, base_dir)).is_dir()


def file_faults(job: JobSpec, base_dir: Path) -> Iterator[Fault]:
    """Files and folders that are missing or not what they should be.

    Absolute paths of a Kubernetes job are taken to be the pod's, and not looked at.
    """
    here = _Here(job, base_dir)
    if not is_hub_model(job, base_dir) and (folder := here.find(job.model.path)) is not None:
        yield from _model_folder(folder)
    if (train := here.find(job.data.train)) is not None:
        yield from _train_index(job, train)
    if job.data.eval is not None and (index := here.find(job.data.eval)) is not None:
        _, fault = _index(("data", "eval"), index)
        yield from fault
    root = None if job.data.media_root is None else here.find(job.data.media_root)
    if root is not None and not root.is_dir():
        yield Fault(("data", "media_root"), f"{root} is not a folder", _RELATIVE)
    for i, given in enumerate(job.code):
        path = Path(absolute(given, base_dir))
        if not path.exists():
            yield Fault(("code", i), f"{path} does not exist", _RELATIVE)
    if job.backend == "local" and job.python is not None and "/" in job.python:
        interpreter = Path(absolute(job.python, base_dir))
        if not (interpreter.is_file() and os.access(interpreter, os.X_OK)):
            yield Fault(("python",), f"{interpreter} is not a program")


class _Here:
    """Where the paths of a job can be looked at."""

    def __init__(self, job: JobSpec, base_dir: Path) -> None:
        self._elsewhere = job.backend == "kubernetes"
        self._base_dir = base_dir

    def find(self, path: str) -> Path | None:
        """The absolute path, or None if it is one of the pod."""
        if self._elsewhere and Path(path).is_absolute():
            return None
        return Path(absolute(path, self._base_dir))


def _model_folder(folder: Path) -> Iterator[Fault]:
    path: FieldPath = ("model", "path")
    if not folder.is_dir():
        hint = f"{_RELATIVE}; a model of the hub is owner/name with a revision"
        yield Fault(path, f"{folder} is not a folder", hint)
    elif not (folder / "config.json").is_file():
        yield Fault(path, f"{folder} holds no config.json", "give the folder of a saved model")


def _train_index(job: JobSpec, file: Path) -> Iterator[Fault]:
    count, faults = _index(("data", "train"), file)
    yield from faults
    if count is None:
        return
    batch = batch_plan(job).global_batch
    if count < batch:
        yield Fault(
            ("data", "train"),
            f"{count} samples do not fill one global batch of {batch}",
            "use a smaller batch or fewer GPUs",
        )
        return
    epochs = job.training.given().get("num_train_epochs")
    every = job.checkpoint.every_steps
    if epochs is None or every is None:
        return
    total = -int(-epochs * (count // batch) // 1)
    if every > total:
        yield Fault(
            ("checkpoint", "every_steps"),
            f"the save interval ({every} steps) is longer than the run "
            f"({epochs:g} epochs of {count // batch} steps)",
            f"use at most {total}",
        )


def _index(path: FieldPath, file: Path) -> tuple[int | None, tuple[Fault, ...]]:
    """Number of samples (None = not counted), and what is wrong with the file."""
    try:
        with open_regular(file) as stream:
            head = stream.read(WHOLE_INDEX_BYTES + 1)
    except FileNotFoundError:
        return None, (Fault(path, f"{file} does not exist", _RELATIVE),)
    except OSError as fault:
        return None, (Fault(path, f"{file} cannot be read: {fault.strerror}"),)
    whole = len(head) <= WHOLE_INDEX_BYTES
    try:
        return _count(head, whole=whole, lines=file.suffix == ".jsonl"), ()
    except (ValueError, RecursionError) as fault:
        hint = "an index is a list of samples (JSON), or a sample a line (JSONL)"
        return None, (Fault(path, f"{file} {fault}", hint),)


def _count(head: bytes, *, whole: bool, lines: bool) -> int | None:
    """Number of samples; None where only the beginning is known. ValueError: no index."""
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if not text:
        raise ValueError("is empty")
    if lines:
        rows = [row for row in text.splitlines() if row.strip()]
        if not isinstance(_json(rows[0]), dict):
            raise ValueError("holds no sample in its first line")
        return len(rows) if whole else None
    if not text.startswith(b"["):
        _json(text if whole else b"[]")
        raise ValueError("is not a list")
    if not whole:
        return None
    samples = _json(text)
    if not samples:
        raise ValueError("holds no samples")
    return len(samples)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"is not JSON: {fault}") from None
