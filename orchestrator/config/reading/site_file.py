"""Where the administrator's file lies. Apart from its reading, which imports much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.contract.env import SITE_FILE
from orchestrator.errors import UserError

NAME = "site.yaml"
TOML_NAME = "site.toml"
"""Its name in earlier versions, and its language; such a file is read as before."""
SYSTEM_FOLDER = Path("/etc/qvl-orchestrate")


def find_site_file(
    given: Path | None, *, environ: Mapping[str, str], home: Path, system: Path = SYSTEM_FOLDER
) -> Path | None:
    """The site file in force: the one given, that of QVL_SITE_FILE, the user's, the system's.

    None if there is none. A file that is named but does not exist is a UserError, and so is a
    folder with a file in either language: neither could be meant to win.
    """
    named = given or (Path(environ[SITE_FILE]) if environ.get(SITE_FILE) else None)
    if named is not None:
        if not named.is_file():
            raise UserError(f"{named}: no such site file", hint=f"check --site or {SITE_FILE}")
        return named
    for folder in (home / ".config" / "qvl-orchestrate", system):
        found = [path for name in (NAME, TOML_NAME) if (path := folder / name).is_file()]
        if len(found) > 1:
            raise UserError(
                f"{folder}: {NAME} and {TOML_NAME} are both there", hint=f"remove {TOML_NAME}"
            )
        if found:
            return found[0]
    return None


def site_file(given: Path | None = None) -> Path | None:
    """The site file in force in this process; None if there is none."""
    return find_site_file(given, environ=os.environ, home=Path.home())


def is_toml(file: Path) -> bool:
    """True for a file of earlier versions, which might have any name."""
    return file.suffix not in (".yaml", ".yml")
