"""Reading the administrator's file."""

from __future__ import annotations

import tomllib
from pathlib import Path

from orchestrator.config.faults import Place, locate, raise_faults
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.document import MAX_BYTES, Document, parse
from orchestrator.config.reading.explain import text_as_written, validated
from orchestrator.config.reading.site_file import is_toml, site_file
from orchestrator.contract.regular import read_regular
from orchestrator.errors import UserError


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
    """A site file's bytes. Raises JobFileError, with the line where it is YAML. Pure."""
    document = _toml(raw, file) if is_toml(Path(file)) else parse(raw, file)
    data = {} if document.data is None else text_as_written(SiteConfig, document)
    site, faults = validated(SiteConfig, data)
    raise_faults(locate(faults, document.places))
    assert site is not None, "no site and no fault"
    return site


def _toml(raw: bytes, file: str) -> Document:
    """The standard library's reader keeps no lines: a fault has its path only."""
    if len(raw) > MAX_BYTES:
        raise UserError(f"{file}: {len(raw)} bytes are too many for a site file")
    try:
        return Document(tomllib.loads(raw.decode()), {(): Place(file)})
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{file}: not TOML: {fault}") from None
