"""A job file on its way to be submitted, and who submits it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.common import note, registry
from orchestrator.clock import SystemClock
from orchestrator.config.load import load_job, load_site, resolve_loaded
from orchestrator.config.models.site import SiteConfig
from orchestrator.contract.env import TRAINER_MODULE
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.operations.submit import SiteSettings, Submitter


def read_job(
    path: Path, overrides: Sequence[str], site_file: Path | None, template: Path | None = None
) -> tuple[ResolvedJob, str, Submitter]:
    """The resolved job, the text of its file, and this user as who submits it.

    Raises UserError for whatever is wrong in either file.
    """
    site = load_site(site_file)
    loaded = load_job(path, overrides)
    for field, what in loaded.spec.without_effect():
        note(f"{path}: {field} has no effect and can be removed: {what}")
    resolved = resolve_loaded(loaded, site, environ=os.environ, template=template)
    return resolved, loaded.text, submitter(site)


def submitter(site: SiteConfig) -> Submitter:
    """This user, at the site of a site file."""
    settings = SiteSettings(
        max_parallel_runs=site.max_parallel_runs,
        node_lost_s=site.node_lost_s,
        group_sharing=site.group_sharing,
        trainer_module=os.environ.get(TRAINER_MODULE, "trainer"),
    )
    return Submitter(registry(), settings, SystemClock(), os.environ)
