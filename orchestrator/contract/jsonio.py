"""Canonical JSON, and frozen dataclasses to and from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
Json = Any
"""A value as `json.loads` gives it."""
SUM = "sum"
SEALED = "sealed"
"""Says that there is a sum: a damaged name of either field betrays itself by the other."""


class MalformedJson(ValueError):
    """A stored document has not the shape it should have."""


class NewerSchema(MalformedJson):
    """A stored document of a schema that a later version of this code has introduced."""


def canonical(value: Json) -> bytes:
    """UTF-8 JSON with sorted keys and no blanks: equal values give equal bytes.

    NaN and infinities are refused (ValueError): they are not JSON.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def pretty(value: Json) -> bytes:
    """JSON for files that people read: indented, sorted, newline at the end."""
    return (
        json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def digest(value: Json) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(value: Mapping[str, Json]) -> dict[str, Json]:
    """The fields, and a checksum over all of them."""
    body = {**value, SEALED: True}
    return {**body, SUM: digest(body)}


def unseal(data: bytes) -> Json:
    """What was sealed and written by `canonical` or `pretty`, every bit of it as it was then.

    What bears no seal was written by an early version, and is given as it is. Raises
    MalformedJson.
    """
    value = loads(data)
    if not isinstance(value, dict) or not (SUM in value or SEALED in value):
        return value
    body = without_sum(value)
    if data not in (canonical(value), pretty(value)):
        raise MalformedJson("is not written as it was")
    return {name: field for name, field in body.items() if name != SEALED}


def without_sum(value: Json) -> dict[str, Json]:
    """The fields of an object that are not its checksum, which is compared. MalformedJson."""
    if not isinstance(value, dict) or SUM not in value:
        raise MalformedJson("has no checksum")
    body = {name: field for name, field in value.items() if name != SUM}
    try:
        found = digest(body)
    except (ValueError, RecursionError) as fault:
        raise MalformedJson(f"holds what was never written: {fault}") from None
    if found != value[SUM]:
        raise MalformedJson("does not match its checksum")
    return body


def loads(data: bytes) -> Json:
    """Parse; every fault is a MalformedJson."""
    try:
        return json.loads(data)
    except (ValueError, UnicodeDecodeError, RecursionError) as fault:
        raise MalformedJson(f"not JSON: {fault}") from None


def to_json(value: Any) -> Json:
    """A dataclass (or a tuple, mapping, enum or plain value) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(cls: type[T], value: Json) -> T:
    """Build a frozen dataclass from plain JSON, checking every type.

    Unknown fields are ignored (a newer writer may add some), missing ones take their
    default. Raises MalformedJson naming the field, NewerSchema for a `schema` beyond ours.
    """
    return typing.cast(T, _build(cls, value, cls.__name__))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(want: Any, value: Json, where: str) -> Any:
    if want is Any:
        return value
    origin = typing.get_origin(want)
    if origin is typing.Union or origin is types.UnionType:
        return _build_union(want, value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(want):
            raise MalformedJson(f"{where}: {value!r} is none of {typing.get_args(want)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise MalformedJson(f"{where}: not a list")
        item = typing.get_args(want)[0]
        return tuple(_build(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, dict):
            raise MalformedJson(f"{where}: not an object")
        item = typing.get_args(want)[1]
        return {k: _build(item, v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(want):
        return _build_dataclass(typing.cast(type, want), value, where)
    return _scalar(want, value, where)


def _build_union(want: Any, value: Json, where: str) -> Any:
    options = typing.get_args(want)
    if value is None and type(None) in options:
        return None
    faults = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _build(option, value, where)
        except MalformedJson as fault:
            faults.append(str(fault))
    raise MalformedJson("; ".join(faults) or f"{where}: must not be null")


def _build_dataclass(want: type, value: Json, where: str) -> Any:
    if not isinstance(value, dict):
        raise MalformedJson(f"{where}: not an object")
    _check_schema(want, value, where)
    hints = _hints(want)
    given = {}
    for field in dataclasses.fields(want):
        if field.name in value:
            given[field.name] = _build(
                hints[field.name], value[field.name], f"{where}.{field.name}"
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MalformedJson(f"{where}.{field.name} is missing")
    return want(**given)


def _check_schema(want: type, value: Json, where: str) -> None:
    """A field `schema` counts from 1; its default is the newest that this version knows."""
    known, found = getattr(want, "__dataclass_fields__", {}).get("schema"), value.get("schema")
    if known is None or not isinstance(known.default, int) or not isinstance(found, int):
        return
    if found > known.default:
        raise NewerSchema(
            f"made by a newer version of qvl-orchestrate (schema {found} of {where}; "
            f"this version knows {known.default})"
        )


def _scalar(want: Any, value: Json, where: str) -> Any:
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise MalformedJson(f"{where}: a number beyond every float") from None
    if not isinstance(value, want) or (want is int and isinstance(value, bool)):
        raise MalformedJson(f"{where}: {type(value).__name__} instead of {want.__name__}")
    return value
