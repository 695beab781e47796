"""Plain data to a JobSpec, with every fault found at once. Pure."""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config.arguments.table import elsewhere, shown
from orchestrator.config.checks.job import job_faults
from orchestrator.config.faults import Fault, Path
from orchestrator.config.models.job import JobSpec
from orchestrator.config.reading.document import Document
from orchestrator.config.values.suggest import did_you_mean, listed, nearest

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "model_type": "a block of fields",
    "model_attributes_type": "a block of fields",
}
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


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
            pruned["backend"] = "kubernetes"  # the one without further rules
    _complete(pruned)
    return None, found + _news(_validated(pruned)[1], found)


def _validated(data: Any) -> tuple[JobSpec | None, tuple[Fault, ...]]:
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        return None, _faults(error, data)
    return spec, job_faults(spec)


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
    return path in {
        ("name",),
        ("model", "path"),
        ("model", "revision"),
        ("data", "train"),
        ("data", "eval"),
        ("data", "media_root"),
        ("checkpoint", "uri"),
    }


def _news(later: tuple[Fault, ...], before: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """Faults of the second pass that are not a mere consequence of the first."""
    return tuple(
        fault
        for fault in later
        if fault not in before and not any(_within(old.path, fault.path) for old in before)
    )


def _within(inner: Path, outer: Path) -> bool:
    return inner[: len(outer)] == outer


def _faults(error: ValidationError, data: Any) -> tuple[Fault, ...]:
    found: list[Fault] = []
    for detail in error.errors(include_url=False):
        path = _real_path(detail["loc"], data)
        context = detail.get("ctx", {})
        if detail["type"] == "faults":
            found += [Fault((*path, *f.path), f.message, f.hint) for f in context["faults"]]
        else:
            found.append(_fault(detail["type"], path, detail["input"], context, detail["msg"]))
    return tuple(dict.fromkeys(found))


def _real_path(loc: tuple[int | str, ...], data: Any) -> Path:
    """A location without the parts that pydantic adds for unions and validators."""
    path: list[str | int] = []
    at = data
    for i, part in enumerate(loc):
        try:
            at = at[part]
        except (KeyError, IndexError, TypeError):
            if i < len(loc) - 1 or not isinstance(at, dict):
                continue
        path.append(part)
    return tuple(path)


def _fault(kind: str, path: Path, value: Any, context: Mapping[str, Any], said: str) -> Fault:
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        return Fault(path, "is missing", _description(path))
    if kind == "literal_error":
        return _not_a_choice(path, value)
    if kind in _WANTED:
        return Fault(path, f"must be {_WANTED[kind]}, not {shown(value)}", _type_hint(kind, value))
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return Fault(path, f"{words} {context[name]:g}, not {shown(value)}")
    if kind in ("too_short", "string_too_short"):
        return Fault(path, "must not be empty")
    if kind == "string_too_long":
        return Fault(path, f"is longer than {context['max_length']} characters")
    return Fault(path, said[:1].lower() + said[1:])


def _type_hint(kind: str, value: Any) -> str | None:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotation marks"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "remove the quotation marks" if value.strip().isdigit() else None
    return None


def _unknown(path: Path) -> Fault:
    section, name = _section(path[:-1]), str(path[-1])
    known = list(section.model_fields) if section else []
    hint = did_you_mean(name, known)
    if hint is None and (block := _block_of(name) or elsewhere(name)):
        hint = block
    if hint is None and path[:1] == ("deepspeed",):
        hint = "put it in a JSON file and name that: deepspeed: {config: file.json}"
    return Fault(path, "unknown field", hint or f"known here: {listed(known)}")


def _block_of(name: str) -> str | None:
    """Where a field of another block belongs."""
    for block in JobSpec.model_fields:
        section = _section((block,))
        if section and name in section.model_fields:
            return f"it belongs under {block}"
    return None


def _not_a_choice(path: Path, value: Any) -> Fault:
    choices = _choices(path)
    texts = [str(choice) for choice in choices]
    near = nearest(value, texts) if isinstance(value, str) else None
    hint = f"did you mean {near}?" if near else None
    return Fault(path, f"must be {listed(texts)}, not {shown(value)}", hint)


def _choices(path: Path) -> tuple[Any, ...]:
    field = _field(path)
    return tuple(_literals(field.annotation)) if field else ()


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [item for arg in typing.get_args(annotation) for item in _literals(arg)]


def _field(path: Path) -> Any:
    keys = tuple(part for part in path if isinstance(part, str))
    section = _section(keys[:-1])
    return section.model_fields.get(keys[-1]) if section and keys else None


def _description(path: Path) -> str | None:
    field = _field(path)
    return field.description if field else None


def _section(path: Path) -> type[BaseModel] | None:
    """The model of the block at `path`."""
    section: type[BaseModel] = JobSpec
    for part in path:
        field = section.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        section = inner
    return section


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
