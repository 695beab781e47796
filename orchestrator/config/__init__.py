"""The user's job file and the administrator's site file: read, checked, resolved.

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config.job import JobSpec
    from orchestrator.config.load import LoadedJob, load_job, resolve_file, resolve_loaded
    from orchestrator.config.resolve import config_digest
    from orchestrator.config.schema import json_schema
    from orchestrator.config.site import SiteConfig, load_site
    from orchestrator.config.template import init_text

__all__ = [
    "JobSpec",
    "LoadedJob",
    "SiteConfig",
    "config_digest",
    "init_text",
    "json_schema",
    "load_job",
    "load_site",
    "resolve_file",
    "resolve_loaded",
]

_HOMES = {
    "JobSpec": "job",
    "LoadedJob": "load",
    "SiteConfig": "site",
    "config_digest": "resolve",
    "init_text": "template",
    "json_schema": "schema",
    "load_job": "load",
    "load_site": "site",
    "resolve_file": "load",
    "resolve_loaded": "load",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
