"""`submit`: a job file becomes a run with a controller of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import json_option, note, note_text, out, out_data, out_json, registry
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.models.site import SiteConfig
    from orchestrator.contract.resolved import ResolvedJob
    from orchestrator.controller.run import Run
    from orchestrator.operations.submit import SiteSettings

_HELP = """Submit the job file JOB as a new run and leave a controller that looks after it.

With --wait, progress is shown on stderr until the run has ended, and the exit code says how:
0 SUCCEEDED, 1 FAILED or CANCELLED, 73 HELD (a person must look). Ctrl-C ends the watching
only (130): the run goes on.

\b
Other exit codes:
  2   the command line is wrong
  69  the storage or the backend does not answer
  78  the job file or the site file is wrong
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate submit job.yaml
  qvl-orchestrate submit job.yaml --set training.max_steps=20 --set name=short --wait
  qvl-orchestrate submit job.yaml --dry-run
"""


@click.command("submit", help=_HELP, epilog=_EXAMPLES)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only print what would be submitted.")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Replace a field of the job."
)
@click.option("--site", type=click.Path(path_type=Path), help="Site file instead of the usual.")
@click.option("--template", type=click.Path(path_type=Path), help="Batch template of your own.")
@json_option
def command(
    *,
    job: Path,
    dry_run: bool,
    wait: bool,
    overrides: tuple[str, ...],
    site: Path | None,
    template: Path | None,
    as_json: bool,
) -> int:
    """Submit a job file (see `_HELP`)."""
    if dry_run and wait:
        raise UsageError("--dry-run submits nothing that --wait could follow")
    resolved, text, settings = read_job(job, overrides, site, template)
    _warn(resolved, site)
    look_ahead(resolved)
    if dry_run:
        _print_dry_run(resolved, settings, as_json)
        return 0
    from orchestrator.cli.services.follow import follow_to_end, leave_controller
    from orchestrator.clock import SystemClock
    from orchestrator.operations.submit import submit

    run = submit(resolved, text, registry(), settings, SystemClock(), os.environ)
    if as_json:
        attended = leave_controller(run)
        out_json({"run_id": run.run_id, "run_dir": run.storage.uri, "attended": attended})
    else:
        try:
            _announce(run)
        finally:
            leave_controller(run)
    return follow_to_end(run) if wait else 0


def read_job(
    path: Path, overrides: Sequence[str], site_file: Path | None, template: Path | None = None
) -> tuple[ResolvedJob, str, SiteSettings]:
    """The resolved job, the text of its file, and what the controller needs of the site.

    Raises UserError for whatever is wrong in either file.
    """
    from orchestrator.config.load import load_job, load_site, resolve_loaded

    site = load_site(site_file)
    loaded = load_job(path, overrides)
    for field, what in loaded.spec.without_effect():
        note(f"{path}: {field} has no effect and can be removed: {what}")
    resolved = resolve_loaded(loaded, site, environ=os.environ, template=template)
    return resolved, loaded.text, settings_of(site)


def settings_of(site: SiteConfig) -> SiteSettings:
    """What the controller needs of a site file."""
    from orchestrator.operations.submit import SiteSettings

    return SiteSettings(
        max_parallel_runs=site.max_parallel_runs,
        node_lost_s=site.node_lost_s,
        group_sharing=site.group_sharing,
    )


def look_ahead(job: ResolvedJob) -> None:
    """Refuse now what would be refused on the node; what only the node sees is named on stderr."""
    from orchestrator.clock import SystemClock
    from orchestrator.operations.preflight import check_data

    for line in check_data(job, SystemClock()):
        note(f"not checked: {line}")


def _warn(job: ResolvedJob, site_file: Path | None) -> None:
    """What the doctor finds in Slurm's settings, on stderr; a submission is not held up by it."""
    if job.backend != "slurm":
        return
    from orchestrator.config.reading.site import load_site
    from orchestrator.config.reading.site_file import site_file as in_force
    from orchestrator.doctor.look import submit_warnings

    named = str(in_force(site_file) or "site.yaml")
    for finding in submit_warnings(job, load_site(site_file), named, registry()):
        note_text(finding.text())


def _print_dry_run(job: ResolvedJob, settings: SiteSettings, as_json: bool) -> None:
    from orchestrator.clock import SystemClock
    from orchestrator.operations.submit import dry_run

    submission = dry_run(job, registry(), settings, SystemClock().now(), os.environ)
    if as_json:
        out_json({"run_id": submission.spec.run_id, "text": submission.text})
    else:
        out_data(submission.text)
    note("nothing was submitted (the run id of a real submission will differ)")


def _announce(run: Run) -> None:
    out(f"submitted {run.run_id}")
    words = (run.registry.find(run.run_id).row or {}).get("message")
    if words:
        out(f"  waits          {words}")
    out(f"  run directory  {run.storage.uri}")
    out(f"  progress       qvl-orchestrate status {run.run_id}")
    out(f"  output         qvl-orchestrate logs -f {run.run_id}")
    out(f"  stop for good  qvl-orchestrate cancel {run.run_id}")
    sys.stdout.flush()
