"""The administrator's file, site.toml: what holds for every job of a site."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from orchestrator.config import tomlpos
from orchestrator.config.argtable import shown
from orchestrator.config.faults import dotted
from orchestrator.config.fields import Section, Text, Texts, as_tuple
from orchestrator.config.site_kubernetes import KubernetesSite
from orchestrator.config.site_slurm import SlurmSite
from orchestrator.config.sitefile import site_file
from orchestrator.config.suggest import did_you_mean, listed
from orchestrator.contract.regular import read_regular
from orchestrator.errors import UserError

MAX_BYTES = 256 * 1024


_Uid = Annotated[int, Field(ge=0, le=2**32)]


class TrustSite(Section):
    """Whom `controller once` and `controller run` trust besides their own user and root."""

    roots: Texts = Field(
        default=(),
        description="Paths and URIs below which every run directory is believed, whoever wrote it.",
    )
    uids: Annotated[tuple[_Uid, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="Owners of run directories that are believed."
    )


class SiteConfig(Section):
    """Settings of a site; every one has a default."""

    group_sharing: bool = Field(
        default=False, description="Run directories are readable by the group (0750 and 0640)."
    )
    max_parallel_runs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="CPU runs at once on the local backend; further ones wait."
    )
    node_lost_s: Annotated[float, Field(gt=0, le=86400)] = Field(
        default=60.0, description="Seconds without a heartbeat after which a node counts as lost."
    )
    survives: Literal["process", "node"] = Field(
        default="node",
        description="What a committed checkpoint survives: the process, or the node.",
    )
    templates_dir: Text | None = Field(
        default=None,
        description="Folder of the site's templates (slurm/NAME); null = `templates` beside the "
        "site file.",
    )
    allow_user_template: bool = Field(
        default=True, description="Users may submit with --template, which is then marked."
    )
    trust: TrustSite = Field(
        default_factory=TrustSite, description="Whose runs the controllers of the site act upon."
    )
    slurm: SlurmSite = Field(default_factory=SlurmSite, description="What holds on Slurm.")
    kubernetes: KubernetesSite = Field(
        default_factory=KubernetesSite, description="What holds on Kubernetes."
    )


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
