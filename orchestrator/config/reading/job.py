"""Plain data to a JobSpec, with every fault found at once. Pure."""

from __future__ import annotations

import copy
import typing
from typing import Any

from orchestrator.config.arguments.table import elsewhere
from orchestrator.config.checks.job import job_faults
from orchestrator.config.faults import Fault, Path
from orchestrator.config.models.fields import TEMPLATE_FIELDS
from orchestrator.config.models.job import JobSpec
from orchestrator.config.reading.document import Document
from orchestrator.config.reading.explain import field_at, section_at, validated


def check_data(data: Any) -> tuple[JobSpec | None, tuple[Fault, ...]]:
    """Validate a job's plain data.

    Contradictions are looked for even where single fields are wrong: those are left out for
    a second pass. The spec is None if there is any fault.
    """
    spec, found = _validated(data)
    if not found:
        return spec, ()
    if not isinstance(data, dict):
        return None, found
    pruned = copy.deepcopy(data)
    for fault in found:
        _remove(pruned, fault.path)
        if fault.path == ("backend",):
            pruned["backend"] = "slurm"  # the one without further rules
    _complete(pruned)
    return None, found + _news(_validated(pruned)[1], found)


def text_as_written(document: Document) -> Any:
    """The document's data, with numbers as they were written where the field is text.

    So `revision: 1234567` and `env: {OMP_NUM_THREADS: 04}` mean what they show.
    """
    data = copy.deepcopy(document.data)
    for path, written in document.written.items():
        number = not isinstance(_at(data, path), bool)
        if (_is_text(path) and number) or (path[:1] == ("env",) and len(path) == 2):
            _put(data, path, written)
    return data


def _is_text(path: Path) -> bool:
    """True if the field takes text, and no number."""
    field = None if isinstance(path[-1], int) else field_at(JobSpec, path)
    return field is not None and _begins_with_text(field.annotation)


def _begins_with_text(annotation: Any) -> bool:
    inner = () if typing.get_origin(annotation) is typing.Literal else typing.get_args(annotation)
    return annotation is str or (bool(inner) and _begins_with_text(inner[0]))


def _news(later: tuple[Fault, ...], before: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Faults of the second pass that are not a mere consequence of the first."""
    return tuple(
        fault
        for fault in later
        if fault not in before and not any(_within(old.path, fault.path) for old in before)
    )


def _within(inner: Path, outer: Path) -> bool:
    return inner[: len(outer)] == outer


def _validated(data: Any) -> tuple[JobSpec | None, tuple[Fault, ...]]:
    spec, faults = validated(JobSpec, data, _hint)
    return spec, job_faults(spec) if spec else faults


def _hint(path: Path) -> str | None:
    """Where an unknown field belongs."""
    block, name = path[0], str(path[-1])
    if block in ("slurm", "kubernetes") and name in TEMPLATE_FIELDS:
        return "use --template of `submit`, which a site may allow or not"
    found = _block_of(name) or elsewhere(name)
    if found is None and block == "deepspeed":
        return "put it in a JSON file and name that: deepspeed: {config: file.json}"
    return found


def _block_of(name: str) -> str | None:
    """Where a field of another block belongs."""
    for block in JobSpec.model_fields:
        section = section_at(JobSpec, (block,))
        if section and name in section.model_fields:
            return f"it belongs under {block}"
    return None


def _complete(data: dict[str, Any]) -> None:
    """Put neutral values where required ones are missing."""
    data.setdefault("name", "x")
    data.setdefault("model", {}).setdefault("path", "x/x")
    data.setdefault("data", {}).setdefault("train", "x")


def _at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _put(data: Any, path: Path, value: Any) -> None:
    _at(data, path[:-1])[path[-1]] = value


def _remove(data: Any, path: Path) -> None:
    """Remove the value at `path`, if it is there; a list position becomes an absent list."""
    for i, part in enumerate(path):
        if isinstance(part, int):
            path = path[:i]
            break
    if not path:
        return
    try:
        del _at(data, path[:-1])[path[-1]]
    except (KeyError, TypeError, IndexError):
        return
