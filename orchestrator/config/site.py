"""The administrator's file, site.toml: what holds for every job of a site."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.config.argtable import shown
from orchestrator.config.suggest import did_you_mean, listed
from orchestrator.contract.env import SITE_FILE
from orchestrator.errors import UserError

SYSTEM_FILE = Path("/etc/qvl-orchestrate/site.toml")
MAX_BYTES = 256 * 1024


class SiteConfig(BaseModel):
    """Settings of a site; every one has a default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

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


def find_site_file(
    given: Path | None, *, environ: Mapping[str, str], home: Path, system: Path = SYSTEM_FILE
) -> Path | None:
    """The site file in force: the one given, that of QVL_SITE_FILE, the user's, the system's.

    None if there is none. A file that is named but does not exist is a UserError.
    """
    named = given or (Path(environ[SITE_FILE]) if environ.get(SITE_FILE) else None)
    if named is not None:
        if not named.is_file():
            raise UserError(f"{named}: no such site file", hint=f"check --site or {SITE_FILE}")
        return named
    candidates = (home / ".config" / "qvl-orchestrate" / "site.toml", system)
    return next((path for path in candidates if path.is_file()), None)


def load_site(path: Path | None = None) -> SiteConfig:
    """Read the site file in force (`find_site_file`); the defaults if there is none.

    Raises UserError naming file, line and field.
    """
    found = find_site_file(path, environ=os.environ, home=Path.home())
    if found is None:
        return SiteConfig()
    try:
        raw = found.read_bytes()
    except OSError as fault:
        raise UserError(f"{found}: cannot be read: {fault.strerror}") from None
    return parse_site(raw, str(found))


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
        raise _error(error, file, text) from None


def _error(error: ValidationError, file: str, text: str) -> UserError:
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0]) if detail["loc"] else ""
        where = f"{file}:{line}" if (line := _line(text, name)) else file
        if detail["type"] == "extra_forbidden":
            known = list(SiteConfig.model_fields)
            said = f"unknown field; {did_you_mean(name, known) or f'known: {listed(known)}'}"
        else:
            said = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, not {shown(detail['input'])}"
        lines.append(f"{where} {name}: {said}")
    return UserError("\n".join(lines))


def _line(text: str, name: str) -> int | None:
    found = re.search(rf"^\s*\[?\[?\"?{re.escape(name)}\"?\s*[=\].]", text, re.MULTILINE)
    return None if found is None else text[: found.end()].count("\n") + 1
