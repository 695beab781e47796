"""Where the administrator's file lies. Apart from its reading, which imports much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.contract.env import SITE_FILE
from orchestrator.errors import UserError

SYSTEM_FILE = Path("/etc/qvl-orchestrate/site.toml")


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


def site_file(given: Path | None = None) -> Path | None:
    """The site file in force in this process; None if there is none."""
    return find_site_file(given, environ=os.environ, home=Path.home())
