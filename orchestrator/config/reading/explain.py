"""Plain data to a model, with every fault found at once and told in a user's words. Pure."""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.config.faults import Fault, Path, shown
from orchestrator.config.reading.document import Document
from orchestrator.config.values.suggest import did_you_mean, listed

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "literal_error": "a choice",
    "string_pattern_mismatch": "text of another form",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "model_type": "a block of fields",
    "model_attributes_type": "a block of fields",
}
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?"
_FEW = 8
"""Choices that a message lists."""
_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}

M = TypeVar("M", bound=BaseModel)


def unknown_field(path: Path, known: Sequence[str]) -> Fault:
    """The fault of a field that is not among those of its block."""
    hint = did_you_mean(str(path[-1]), known) or f"known here: {listed(known)}"
    return Fault(path, "unknown field", hint)


Unknown = Callable[[Path, Sequence[str]], Fault]


def validated(
    model: type[M], data: Any, unknown: Unknown = unknown_field
) -> tuple[M | None, tuple[Fault, ...]]:
    """The model of `data`, or every fault of its fields, with paths from its top.

    `unknown` makes the fault of a field that its block does not know.
    """
    try:
        return model.model_validate(data), ()
    except ValidationError as error:
        return None, tuple(dict.fromkeys(_faults(error, model, data, unknown)))


def section_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model of the block at `path`, or of the blocks in the list there."""
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return None
        model = inner
    return model


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field at `path`."""
    keys = tuple(part for part in path if isinstance(part, str))
    section = section_at(model, keys[:-1])
    return section.model_fields.get(keys[-1]) if section and keys else None


def text_as_written(model: type[BaseModel], document: Document) -> Any:
    """The document's data, with numbers as they were written where the field is text.

    So `revision: 1234567` and `env: {OMP_NUM_THREADS: 04}` mean what they show.
    """
    data = copy.deepcopy(document.data)
    for path, written in document.written.items():
        flag = isinstance(value_at(data, path), bool)
        if _is_variable(model, path) or (_is_text(model, path) and not flag):
            value_at(data, path[:-1])[path[-1]] = written
    return data


def value_at(data: Any, path: Path) -> Any:
    """The value at a path that exists."""
    for part in path:
        data = data[part]
    return data


def _is_text(model: type[BaseModel], path: Path) -> bool:
    """True if the field takes text, and no number."""
    field = field_at(model, path) if path and isinstance(path[-1], str) else None
    return field is not None and _kinds(field.annotation) <= {str, type(None)}


def _is_variable(model: type[BaseModel], path: Path) -> bool:
    """True for a value in a mapping of texts."""
    field = field_at(model, path[:-1])
    kind = typing.get_origin(field.annotation) if field else None
    return kind in (dict, Mapping) and typing.get_args(field and field.annotation)[1] is str


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation allows."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kinds(args[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, args))
    return {origin or annotation}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _faults(
    error: ValidationError, model: type[BaseModel], data: Any, unknown: Unknown
) -> Iterator[Fault]:
    found: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_real_path(detail["loc"], data), []).append(detail)
    for path, details in found.items():
        if any(len(path) < len(other) and other[: len(path)] == path for other in found):
            continue  # of the kinds that a value may have, the one that is meant is wrong inside
        yield from _faults_at(path, details, model, unknown)


def _faults_at(
    path: Path, details: Sequence[ErrorDetails], model: type[BaseModel], unknown: Unknown
) -> Iterator[Fault]:
    for detail in details:
        kind = detail["type"]
        if kind == "faults":
            for fault in detail["ctx"]["faults"]:
                yield Fault((*path, *fault.path), fault.message, fault.hint)
        elif kind == "extra_forbidden":
            section = section_at(model, path[:-1])
            yield unknown(path, list(section.model_fields) if section else [])
        elif kind == "missing":
            field = field_at(model, path)
            yield Fault(path, "is missing", field.description if field else None)
        elif kind in _BOUNDS:
            name, words = _BOUNDS[kind]
            limit, value = detail["ctx"][name], detail["input"]
            yield Fault(path, f"{words} {limit:g}, not {shown(value)}")
        elif (said := _other(kind, detail)) is not None:
            yield Fault(path, said)
    kinds = [detail for detail in details if detail["type"] in _KINDS]
    if kinds:
        yield _of_no_kind(path, kinds, field_at(model, path))


def _other(kind: str, detail: ErrorDetails) -> str | None:
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "string_too_long":
        return f"is longer than {detail['ctx']['max_length']} characters"
    return None if kind in _KINDS else detail["msg"][:1].lower() + detail["msg"][1:]


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


def _of_no_kind(path: Path, details: Sequence[ErrorDetails], field: FieldInfo | None) -> Fault:
    """A value that is none of what its field takes."""
    value = details[0]["input"]
    choices = [word for word in _literals(field and field.annotation) if word != "auto"]
    wanted = dict.fromkeys(word for detail in details for word in _words(detail, choices, value))
    near = did_you_mean(value, map(str, choices)) if isinstance(value, str) else None
    if isinstance(value, str) and len(choices) > _FEW:
        return Fault(path, f"{value!r} is not a choice", near or f"one of {listed(choices)}")
    hint = near or _hint(value, wanted, field)
    return Fault(path, f"must be {listed(wanted)}, not {shown(value)}", hint)


def _words(detail: ErrorDetails, choices: Sequence[Any], value: Any) -> Iterator[str]:
    kind = detail["type"]
    if kind == "string_pattern_mismatch":
        yield detail["ctx"]["pattern"].strip("^$")
    elif kind != "literal_error":
        yield _KINDS[kind]
    elif not choices:
        yield "auto"
    elif not isinstance(value, str) and all(isinstance(choice, str) for choice in choices):
        yield "text"
    else:
        yield from map(str, choices)


def _hint(value: Any, wanted: Iterable[str], field: FieldInfo | None) -> str | None:
    if value is None and field is not None and not field.is_required():
        return "remove the line to get the default"
    if "text" in wanted and isinstance(value, bool | int | float):
        return "put it in quotation marks"
    plain = value.strip().lower() if isinstance(value, str) else ""
    if "true or false" in wanted and plain in ("true", "false"):
        return "remove the quotation marks"
    if {"a number", "a whole number"} & set(wanted) and re.fullmatch(_NUMBER, plain):
        return "remove the quotation marks"
    return None


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [item for arg in typing.get_args(annotation) for item in _literals(arg)]
