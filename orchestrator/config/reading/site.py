"""Reading the administrator's file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.faults import Fault, dotted
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading import tomlpos
from orchestrator.config.reading.explain import validated
from orchestrator.config.reading.site_file import site_file
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
    site, faults = validated(SiteConfig, data)
    if site is None:
        lines = tomlpos.lines(text)
        raise UserError("\n".join(dict.fromkeys(_line(fault, file, lines) for fault in faults)))
    return site


def _line(fault: Fault, file: str, lines: Mapping[tuple[str | int, ...], int]) -> str:
    """`site.toml:3 slurm.limits[0].max: ...`, with the line of the nearest enclosing value."""
    ends = range(len(fault.path), 0, -1)
    line = next((lines[fault.path[:end]] for end in ends if fault.path[:end] in lines), None)
    where = file if line is None else f"{file}:{line}"
    hint = f"; {fault.hint}" if fault.hint else ""
    return f"{where} {dotted(fault.path)}: {fault.message}{hint}"
