"""`doctor`: what of this place endangers a run."""

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
    out,
    out_json,
    out_text,
    registry,
    site_option,
)
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.models.site import SiteConfig
    from orchestrator.contract.resolved import ResolvedJob
    from orchestrator.doctor.finding import Finding

_HELP = """Check what would endanger a run here, why it matters, and what to change.

With a job file, what that job needs counts: its partition, grace, time limit and folders.
Without one, --backend says what is looked at; left out: Slurm where sbatch is on PATH.
A cluster of Kubernetes cannot be judged yet, and for such a job it says so.
Nothing is changed, and `python:` is run only of a job file that nobody else could have
written. --probe submits a Slurm job of about two minutes, which reports from its node
which signals arrive and when; --preempt-with names a partition whose jobs preempt it.

\b
Exit codes:
  0   no danger was found (warnings there may be)
  78  a danger was found, or the job or site file is wrong
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate doctor
  qvl-orchestrate doctor job.yaml
  qvl-orchestrate doctor --backend slurm --probe --preempt-with high
"""
DANGER = 78


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked at."""

    job: Path | None
    backend: str | None
    site: Path | None
    every: bool
    probe: bool
    partition: str | None
    preempt_with: str | None
    as_json: bool


@click.command("doctor", help=_HELP, epilog=_EXAMPLES)
@click.argument("job", required=False, type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(["local", "slurm"]), help="Where runs are to go.")
@site_option
@click.option("--all", "every", is_flag=True, help="Also show what is in order.")
@click.option("--probe", is_flag=True, help="Submit a job of two minutes and read its report.")
@click.option("--partition", help="Partition of --probe, instead of the default.")
@click.option("--preempt-with", metavar="PARTITION", help="Preempt the probe by a job there.")
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Look at this place (see `_HELP`)."""
    from orchestrator.config.load import load_site
    from orchestrator.doctor.finding import sorted_findings

    config = load_site(asked.site)
    resolved = _resolved(asked.job, config)
    where = asked.backend or (resolved.backend if resolved else _usual())
    found = list(_look(resolved, asked, config, where))
    if asked.probe and where == "kubernetes":
        raise UsageError("--probe submits a Slurm job", hint="leave it out for a Kubernetes job")
    if asked.probe:
        from orchestrator.doctor.judge_place import LOOKS_LOCAL
        from orchestrator.doctor.judge_probe import SHARED_FOLDER
        from orchestrator.doctor.probe import run_probe

        name = asked.partition or (resolved.slurm.get("partition") if resolved else None)
        note("submitting a probe; this takes one to four minutes (Ctrl-C ends it)")
        name = name or config.slurm.partition
        told = run_probe(registry().state_dir, name, asked.preempt_with, config)
        if any(f.subject == SHARED_FOLDER for f in told):
            # The probe knows what the kind of file system only suggests.
            found = [f for f in found if not f.what.endswith(LOOKS_LOCAL)]
        found += told
    _show(sorted_findings(found), every=asked.every or asked.probe, as_json=asked.as_json)
    return DANGER if any(f.level == "danger" for f in found) else 0


def _resolved(job: Path | None, config: SiteConfig) -> ResolvedJob | None:
    if job is None:
        return None
    from orchestrator.config.load import load_job, resolve_loaded

    return resolve_loaded(load_job(job), config)


def _usual() -> str:
    import shutil

    return "slurm" if shutil.which("sbatch") else "local"


def _look(job: ResolvedJob | None, asked: Asked, config: SiteConfig, backend: str) -> list[Finding]:
    from orchestrator.config.reading.site_file import site_file
    from orchestrator.doctor import look

    if backend == "kubernetes":
        return [look.no_cluster()]
    known = registry()
    slurm = backend == "slurm"
    found: list[Finding] = []
    if slurm:
        named = str(site_file(asked.site) or "site.yaml")
        found += look.look_slurm(look.wants_of(job, config, named, known))
    found += look.look_language(site_file(asked.site))
    found += look.look_trusted(_site_files(config, asked.site))
    found += look.look_machine(look.CLIENTS if slurm else (), wants_gpu=not slurm)
    found += look.look_folder(known.state_dir, "state", must_be_shared=slurm)
    if not (slurm and config.slurm.container):
        found += _look_python(job, asked.job)
    if job is not None and job.checkpoint.uri.startswith("/"):
        folder = Path(job.checkpoint.uri)
        found += look.look_folder(folder, "run directories", must_be_shared=slurm)
    return found


def _look_python(job: ResolvedJob | None, file: Path | None) -> tuple[Finding, ...]:
    """The interpreter of runs. That of a job file which others could have written is not run."""
    from orchestrator.doctor import look
    from orchestrator.doctor.finding import Finding
    from orchestrator.storage.ownership import foreign_hands

    if job is None or job.python is None:
        return look.look_python(sys.executable)
    assert file is not None, "a job comes from a file"
    if (found := foreign_hands(file)) is None:
        return look.look_python(job.python)
    why = "nothing that others chose is run to look at it"
    change = "look at a copy of your own of the job file"
    return (Finding("warning", f"python {job.python}", f"not looked at: {found}", why, change),)


def _site_files(config: SiteConfig, given: Path | None) -> list[Path]:
    """What shapes every job of the site: its file, its folder of templates and what is in it."""
    from orchestrator.config.reading.site_file import site_file

    file = site_file(given)
    if file is None or config.templates_dir is None:
        return []
    folder = Path(config.templates_dir)
    return [file, file.parent, folder, *sorted(folder.rglob("*"))]


def _show(found: tuple[Finding, ...], *, every: bool, as_json: bool) -> None:
    from orchestrator.contract.jsonio import to_json
    from orchestrator.doctor.finding import ORDER

    counts = {level: sum(f.level == level for f in found) for level in ORDER}
    if as_json:
        out_json({"findings": to_json(found), "counts": counts})
        return
    for finding in found:
        if every or finding.level != "good":
            out_text(finding.text() + "\n")
    told = ", ".join(f"{n} {level}" for level, n in counts.items() if n)
    out(f"looked at {len(found)} things: {told}" + ("" if every else " (--all shows all)"))
