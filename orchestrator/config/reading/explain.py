"""Plain data to a model, with every fault found at once and told in a user's words. Pure."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from orchestrator.config.faults import Fault, Path, shown
from orchestrator.config.values.suggest import did_you_mean, listed, nearest

_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
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

M = TypeVar("M", bound=BaseModel)


def validated(
    model: type[M], data: Any, hint: Callable[[Path], str | None] = lambda _: None
) -> tuple[M | None, tuple[Fault, ...]]:
    """The model of `data`, or every fault of its fields, with paths from its top.

    `hint` says where an unknown field belongs that resembles none of its block.
    """
    try:
        return model.model_validate(data), ()
    except ValidationError as error:
        return None, tuple(dict.fromkeys(_faults(error, model, data, hint)))


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


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _faults(
    error: ValidationError, model: type[BaseModel], data: Any, hint: Callable[[Path], str | None]
) -> Iterator[Fault]:
    for detail in error.errors(include_url=False):
        path, kind = _real_path(detail["loc"], data), detail["type"]
        if kind == "faults":
            for fault in detail["ctx"]["faults"]:
                yield Fault((*path, *fault.path), fault.message, fault.hint)
        elif kind == "extra_forbidden":
            section = section_at(model, path[:-1])
            known = list(section.model_fields) if section else []
            near = did_you_mean(str(path[-1]), known) or hint(path)
            yield Fault(path, "unknown field", near or f"known here: {listed(known)}")
        elif kind == "missing":
            field = field_at(model, path)
            yield Fault(path, "is missing", field.description if field else None)
        elif kind == "literal_error":
            yield _not_a_choice(field_at(model, path), path, detail["input"])
        else:
            yield _wrong(kind, path, detail["input"], detail.get("ctx", {}), detail["msg"])


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


def _wrong(kind: str, path: Path, value: Any, context: Mapping[str, Any], said: str) -> Fault:
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


def _not_a_choice(field: FieldInfo | None, path: Path, value: Any) -> Fault:
    texts = [str(choice) for choice in _literals(field.annotation)] if field else []
    near = nearest(value, texts) if isinstance(value, str) else None
    hint = f"did you mean {near}?" if near else None
    return Fault(path, f"must be {listed(texts)}, not {shown(value)}", hint)


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [item for arg in typing.get_args(annotation) for item in _literals(arg)]
