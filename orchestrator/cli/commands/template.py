"""`template`: the batch file of Slurm jobs, as an administrator shapes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    json_option,
    note,
    note_text,
    out,
    out_data,
    out_json,
    out_text,
    site_option,
)
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.config.models.site import SiteConfig
    from orchestrator.operations.site_templates import Report
    from orchestrator.templates.template import Template

_HELP = """Look at, check and start the template that every Slurm job's batch file is made from.

It is looked for in this order: --template, the site's directory (templates_dir in site.yaml,
else `templates` beside it) as slurm/train.sbatch.j2, the one that ships. slurm/README.md is the
guide for administrators.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate template init
  qvl-orchestrate template check
  qvl-orchestrate template diff
"""
_template = click.option(
    "--template", type=click.Path(path_type=Path), help="This file instead of the one in force."
)
FULL_SHAPE = (1, 8)
"""Nodes and GPUs of the job that `show --rendered` and `diff` render for."""


@click.group("template", help=_HELP, epilog=_EXAMPLES)
def command() -> None:
    """Templates of batch files (see `_HELP`)."""


@command.command(
    "show",
    epilog="""\b
Examples:
  qvl-orchestrate template show
  qvl-orchestrate template show --rendered
  qvl-orchestrate template show --values""",
)
@site_option
@_template
@click.option("--ours", is_flag=True, help="The one that ships, whatever the site has.")
@click.option("--rendered", is_flag=True, help="As a job of 1 node with 8 GPUs would get it.")
@click.option("--values", is_flag=True, help="What a template can print, with sample values.")
@json_option
def show(
    *,
    site: Path | None,
    template: Path | None,
    ours: bool,
    rendered: bool,
    values: bool,
    as_json: bool,
) -> int:
    """Print the template in force: where it is from on stderr, its text on stdout."""
    from orchestrator.operations.site_templates import sample_values

    config = _load(site)
    if values:
        return _show_values(sample_values(config, *FULL_SHAPE), as_json)
    found = _ours() if ours else _find(config, template)
    text = _render(found, config) if rendered else found.text
    if as_json:
        out_json({**_about(found), "text": text})
        return 0
    note(f"{found.template_id}  sha256 {found.sha256}  api {found.api}")
    for source in found.sources[1:]:
        note(f"  with {source.name}  {source.path}")
    out_data(text)
    return 0


@command.command(
    "diff",
    epilog="""\b
Examples:
  qvl-orchestrate template diff
  qvl-orchestrate template diff --source --template ./train.sbatch.j2""",
)
@site_option
@_template
@click.option("--source", is_flag=True, help="Compare the files, not what comes out of them.")
@json_option
def diff(*, site: Path | None, template: Path | None, source: bool, as_json: bool) -> int:
    """Show what the site's template changes: its batch file against ours, for 1 node x 8 GPUs."""
    import difflib

    config = _load(site)
    theirs, ours = _find(config, template), _ours()
    pair = [ours.text, theirs.text] if source else [_render(t, config) for t in (ours, theirs)]
    before, after = (text.splitlines(keepends=True) for text in pair)
    text = "".join(difflib.unified_diff(before, after, ours.template_id, theirs.template_id))
    if as_json:
        out_json({**_about(theirs), "equal": not text, "diff": text})
        return 0
    if theirs.sources[0].ours:
        note("the template in force is the one that ships: the site has none of its own")
    elif not text:
        note(f"{theirs.template_id} changes nothing")
    out_data(text)
    return 0


@command.command(
    "check",
    epilog="""\b
Examples:
  qvl-orchestrate template check
  qvl-orchestrate template check --template ./train.sbatch.j2 --json
  qvl-orchestrate template check --run""",
)
@site_option
@_template
@click.option(
    "--run",
    "run_it",
    is_flag=True,
    help="Run it too, here, with stubs of srun and scontrol: does it live through a notice?",
)
@json_option
def check(*, site: Path | None, template: Path | None, run_it: bool, as_json: bool) -> int:
    """Render it for 1 x 1, 1 x 8 and 4 x 8 GPUs and look for what a job cannot do without.

    Refused (exit code 78) is a template that loses the notice, append mode, the requeue, the
    supervisor or the GPU count, that bash cannot read, or that sbatch --test-only refuses.

    --run executes the rendered file on this machine, in an empty folder, with a PATH of stubs
    and a time limit; only files that belong to you or root are run.
    """
    from orchestrator.operations.site_templates import check_template

    config = _load(site)
    report = check_template(config, _find(config, template))
    if run_it:
        report = _run(config, report, site)
    if as_json:
        out_json(_report_json(report))
    else:
        _print_report(report)
    return 0 if report.ok else UserError.exit_code


@command.command(
    "init",
    epilog="""\b
Examples:
  qvl-orchestrate template init
  qvl-orchestrate template init --site ./site.yaml
  qvl-orchestrate template init --output ./train.sbatch.j2""",
)
@site_option
@click.option("--output", type=click.Path(path_type=Path), help="Where to write it.")
@json_option
def init(*, site: Path | None, output: Path | None, as_json: bool) -> int:
    """Write a commented template that extends ours, where the site's is looked for.

    A file that is there is never overwritten.
    """
    from orchestrator.templates.find import SLURM_TEMPLATE
    from orchestrator.templates.starter import starter_text

    if output is None:
        folder = _load(site).templates_dir
        if folder is None:
            raise UserError(
                "there is no site file, so the site has no directory of templates",
                hint="write a site.yaml first and name it with --site, or give --output",
            )
        output = Path(folder) / "slurm" / SLURM_TEMPLATE
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("x", encoding="utf-8") as file:
            file.write(starter_text())
    except FileExistsError:
        raise UserError(f"{output} exists and is left as it is", hint="give --output") from None
    except OSError as fault:
        raise UserError(f"{output}: {fault.strerror}", hint="give --output") from None
    if as_json:
        out_json({"path": str(output)})
    else:
        out(f"written {output}")
        out("  then  qvl-orchestrate template check")
    return 0


def _run(config: SiteConfig, report: Report, site: Path | None) -> Report:
    from orchestrator.config.reading.site_file import site_file
    from orchestrator.operations.site_templates import rehearse_template
    from orchestrator.templates.rehearsal import LIMIT_S, STORIES, may_run

    file = site_file(site)
    may_run([Path(s.path) for s in report.template.sources] + ([file] if file else []))
    note(
        f"running {report.template.template_id} on this machine, {len(STORIES)} times for each of "
        f"two shapes: in an empty folder, with stubs of srun and scontrol, at most {LIMIT_S:.0f} s "
        "each"
    )
    return rehearse_template(config, report)


def _load(site: Path | None) -> SiteConfig:
    from orchestrator.config.load import load_site

    return load_site(site)


def _find(config: SiteConfig, template: Path | None) -> Template:
    from orchestrator.operations.site_templates import site_template

    return site_template(config, template)


def _ours() -> Template:
    from orchestrator.templates.find import SLURM_TEMPLATE, shipped_template

    return shipped_template("slurm", SLURM_TEMPLATE)


def _render(template: Template, config: SiteConfig) -> str:
    from orchestrator.operations.site_templates import sample_values
    from orchestrator.templates.render import render

    return render(template, sample_values(config, *FULL_SHAPE)).text


def _about(template: Template) -> dict[str, Any]:
    return {
        "template": template.template_id,
        "origin": template.origin,
        "path": str(template.path),
        "sha256": template.sha256,
        "api": template.api,
        "files": [{"name": s.name, "path": s.path} for s in template.sources],
    }


def _show_values(values: Any, as_json: bool) -> int:
    import json

    if as_json:
        out_json(values)
    else:
        out_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return 0


def _report_json(report: Report) -> dict[str, Any]:
    from orchestrator.contract.jsonio import to_json

    return {
        **_about(report.template),
        "ok": report.ok,
        "findings": to_json(report.findings),
        "notes": list(report.notes),
        "asked_slurm": report.slurm,
        "ran": to_json(report.acts),
    }


def _print_report(report: Report) -> None:
    for finding in report.findings:
        out_text(f"{finding}\n")
    for act in report.acts:
        if not act.refused:
            out(f"{act.shape}, {act.story}: {act.seen or 'nothing as it must be'}")
    for text in report.notes:
        note_text(f"note: {text}")
    if not report.slurm:
        note("note: no Slurm answers here, so sbatch --test-only was not run")
    count = len(report.findings)
    found = f"{count} fault{'s' if count > 1 else ''}" if count else "nothing is lost"
    note(f"{report.template.template_id}: {found}")
