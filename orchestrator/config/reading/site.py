"""Reading the administrator's file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.config.arguments.table import shown
from orchestrator.config.faults import dotted
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading import tomlpos
from orchestrator.config.reading.site_file import site_file
from orchestrator.config.values.suggest import did_you_mean, listed
from orchestrator.contract.regular import read_regular
from orchestrator.errors import UserError

MAX_BYTES = 256 * 1024


def load_site(path: Path | None = None) -> SiteConfig:
    """Read the site file in force (`site_file`); the defaults if there is none.

    Raises UserError naming file, line and field.
    """
    found = site_file(path)
    if found is None:
        return SiteConfig()
    try:
        raw = read_regular(found)
    except OSError as fault:
        raise UserError(f"{found}: cannot be read: {fault.strerror}") from None
    site = parse_site(raw, str(found))
    folder = found.absolute().parent / (site.templates_dir or "templates")
    return site.model_copy(update={"templates_dir": str(folder)})


def parse_site(raw: bytes, file: str) -> SiteConfig:
    """A site file's bytes; every fault is a UserError. Pure."""
    if len(raw) > MAX_BYTES:
        raise UserError(f"{file}: {len(raw)} bytes are too many for a site file")
    try:
        text = raw.decode()
        data = tomllib.loads(text)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{file}: not TOML: {fault}") from None
    try:
        return SiteConfig.model_validate(data)
    except ValidationError as error:
        lines = tomlpos.lines(text)
        said = [_line(fault, file, lines) for fault in _faults(error, data)]
        raise UserError("\n".join(dict.fromkeys(said))) from None


@dataclass(frozen=True, slots=True)
class _Found:
    path: tuple[str | int, ...]
    message: str


def _faults(error: ValidationError, data: Any) -> Iterator[_Found]:
    for detail in error.errors(include_url=False):
        path = _real_path(detail["loc"], data)
        if detail["type"] == "faults":
            for fault in detail["ctx"]["faults"]:
                hint = f"; {fault.hint}" if fault.hint else ""
                yield _Found((*path, *fault.path), f"{fault.message}{hint}")
        elif detail["type"] == "extra_forbidden":
            name, known = str(path[-1]), list(_fields_at(path[:-1]))
            near = did_you_mean(name, known) or f"known: {listed(known)}"
            yield _Found(path, f"unknown field; {near}")
        elif detail["type"] == "missing":
            yield _Found(path, "is missing")
        else:
            said = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown(detail['input'])}"
            yield _Found(path, said)


def _line(fault: _Found, file: str, lines: Mapping[tuple[str | int, ...], int]) -> str:
    """`site.toml:3 slurm.limits[0].max: ...`, with the line of the nearest enclosing value."""
    ends = range(len(fault.path), 0, -1)
    line = next((lines[fault.path[:end]] for end in ends if fault.path[:end] in lines), None)
    where = file if line is None else f"{file}:{line}"
    return f"{where} {dotted(fault.path)}: {fault.message}"


def _real_path(loc: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """A location without what pydantic adds to it for unions and validators."""
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


def _fields_at(path: tuple[str | int, ...]) -> Mapping[str, Any]:
    """The fields of the block at a path."""
    model: type[BaseModel] = SiteConfig
    for part in path:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            model = next(iter(_models(field.annotation if field else None)), model)
    return model.model_fields


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The blocks inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
