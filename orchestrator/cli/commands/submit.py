"""`submit`: a job file becomes a run with a controller of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import (
    asked_as,
    json_option,
    note,
    note_text,
    out,
    out_data,
    out_json,
    registry,
    set_option,
    site_option,
    template_option,
)
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.contract.resolved import ResolvedJob
    from orchestrator.controller.run import Run
    from orchestrator.operations.submit import Submitter

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What is submitted, and how far."""

    job: Path
    dry_run: bool
    wait: bool
    overrides: tuple[str, ...]
    site: Path | None
    template: Path | None
    as_json: bool


@click.command("submit", help=_HELP, epilog=_EXAMPLES)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only print what would be submitted.")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@set_option
@site_option
@template_option
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Submit a job file (see `_HELP`)."""
    if asked.dry_run and asked.wait:
        raise UsageError("--dry-run submits nothing that --wait could follow")
    from orchestrator.cli.services.job import read_job
    from orchestrator.operations.preflight import check_data

    resolved, text, by = read_job(asked.job, asked.overrides, asked.site, asked.template)
    _warn(resolved, asked.site)
    for line in check_data(resolved, by.clock):
        note(f"not checked: {line}")
    if asked.dry_run:
        _print_dry_run(resolved, by, as_json=asked.as_json)
        return 0
    from orchestrator.cli.services.follow import follow_to_end, leave_controller
    from orchestrator.operations.submit import submit

    run = submit(resolved, text, by)
    if asked.as_json:
        attended = leave_controller(run)
        out_json({"run_id": run.run_id, "run_dir": run.storage.uri, "attended": attended})
    else:
        try:
            _announce(run)
        finally:
            leave_controller(run)
    return follow_to_end(run) if asked.wait else 0


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


def _print_dry_run(job: ResolvedJob, by: Submitter, *, as_json: bool) -> None:
    from orchestrator.operations.submit import dry_run

    submission = dry_run(job, by)
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
