"""Plain data to a JobSpec, with every fault found at once. Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from orchestrator.config.arguments import reserved
from orchestrator.config.arguments.base import Arguments
from orchestrator.config.checks.job import job_faults
from orchestrator.config.faults import Fault, Path
from orchestrator.config.fields import TEMPLATE_FIELDS
from orchestrator.config.models.job import JobSpec
from orchestrator.config.reading.explain import section_at, unknown_field, validated, value_at
from orchestrator.config.values.suggest import did_you_mean


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
    spec, faults = validated(JobSpec, data, _unknown)
    return spec, job_faults(spec) if spec else faults


def _unknown(path: Path, known: Sequence[str]) -> Fault:
    """A field that its block does not have: what to write instead, or where it belongs."""
    block, name = path[0], str(path[-1])
    section = section_at(JobSpec, path[:-1])
    if section is not None and issubclass(section, Arguments):
        return _no_argument(section, path, known)
    if block in ("slurm", "kubernetes") and name in TEMPLATE_FIELDS:
        hint = "use --template of `submit`, which a site may allow or not"
        return Fault(path, "unknown field", hint)
    elsewhere = did_you_mean(name, known) or _block_of(name)
    if elsewhere is None and block == "deepspeed":
        elsewhere = "put it in a JSON file and name that: deepspeed: {config: file.json}"
    return Fault(path, "unknown field", elsewhere) if elsewhere else unknown_field(path, known)


def _no_argument(section: type[Arguments], path: Path, known: Sequence[str]) -> Fault:
    block, name = str(path[0]), str(path[-1])
    if (instead := reserved.reserved(block, name)) is not None:
        return Fault(path, "cannot be set here", instead)
    if name in section.OBJECTS:
        return Fault(path, "takes a Python object, which a job file cannot give", "remove it")
    hint = reserved.renamed(block, name) or did_you_mean(name, known) or _block_of(name)
    return Fault(path, "unknown field", hint or f"fields are those of {section.SOURCE}")


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


def _remove(data: Any, path: Path) -> None:
    """Remove the value at `path`, if it is there; a list position becomes an absent list."""
    for i, part in enumerate(path):
        if isinstance(part, int):
            path = path[:i]
            break
    if not path:
        return
    try:
        del value_at(data, path[:-1])[path[-1]]
    except (KeyError, TypeError, IndexError):
        return
