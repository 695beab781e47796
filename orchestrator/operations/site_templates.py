"""Looking at a site's template: rendered for jobs of several shapes, and checked."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.backends.slurm import commands
from orchestrator.backends.slurm.values import template_values
from orchestrator.config.models.job import JobSpec
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.resolving.job import resolve
from orchestrator.config.resolving.slurm import resolve_slurm
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import QvlError, UserError
from orchestrator.templates.check import Finding, Shape, check
from orchestrator.templates.find import SLURM_TEMPLATE, find_for
from orchestrator.templates.rehearsal import Act, Script, rehearse
from orchestrator.templates.render import render
from orchestrator.templates.template import Template

SHAPES = ((1, 1), (1, 8), (4, 8))
"""Nodes and GPUs of each node that a template is rendered for."""
_HOSTILE = 'it\'s "$(false)" `false`\n#SBATCH --nodes=99\n'
"""A value that must reach the job as it is, and nothing else."""
_BASH_S = 10.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `notes` are about this cluster, not about the template."""

    template: Template
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    slurm: bool
    """True if a Slurm was asked too."""
    acts: tuple[Act, ...] = ()
    """What was seen where the batch file was run (`rehearse_template`)."""

    @property
    def ok(self) -> bool:
        return not self.findings


def site_template(site: SiteConfig, explicit: Path | None) -> Template:
    """The template in force at a site, or the one given."""
    named = {"template": explicit and str(explicit), "templates_dir": site.templates_dir}
    return find_for("slurm", SLURM_TEMPLATE, named)


def sample_values(site: SiteConfig, nodes: int, gpus: int) -> Mapping[str, object]:
    """What a template is rendered with, for a job of that shape at this site."""
    job = _sample_job(site, nodes, gpus)
    spec = TrainSpec(
        run_id="template-check-000000-abcdef",
        storage="/runs/template-check-000000-abcdef",
        submission=1,
        backend="slurm",
        nodes=nodes,
        gpus_per_node=gpus,
        grace_s=job.preemption.grace_s,
        python=job.python or "/usr/bin/python3",
        env=dict(job.env),
    )
    return template_values(job, spec)


def _sample_job(site: SiteConfig, nodes: int, gpus: int) -> ResolvedJob:
    spec = JobSpec.model_validate(
        {
            "name": "template-check",
            "backend": "slurm",
            "model": {"path": "/model"},
            "data": {"train": "/train.json"},
            "training": {"max_steps": 1},
            "resources": {"nodes": nodes, "gpus_per_node": gpus, "time_limit": 3600},
            "env": {"TEMPLATE_CHECK": _HOSTILE},
        }
    )
    plain = resolve(spec, base_dir=Path("/"), site=SiteConfig())
    mine = resolve_slurm(spec, site, environ={}, template=None)
    grace = replace(plain.preemption, grace_s=mine.grace_s)
    return replace(plain, slurm=mine.block, env=mine.env, python=mine.python, preemption=grace)


def check_template(site: SiteConfig, template: Template) -> Report:
    """Render for every shape and look at the text, with bash, and with Slurm where there is one.

    Faults that keep a template from being read or rendered come as findings too.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    asked = False
    for nodes, gpus in SHAPES:
        shape = Shape(nodes, gpus, site.slurm.gpu_request, site.slurm.gres)
        try:
            text = render(template, sample_values(site, nodes, gpus)).text
        except UserError as fault:
            findings.append(_as_finding(fault, template))
            break
        findings += [*check(text, template, shape), *_bash(text, template)]
        said, here = _sbatch(text, template, shape)
        asked = asked or here
        findings += [s for s in said if isinstance(s, Finding)]
        notes += [s for s in said if isinstance(s, str)]
    # Said once, though it holds for each shape.
    once = {(f.file, f.line, re.sub(r"\d+", "", f.what)): f for f in reversed(findings)}
    return Report(template, tuple(reversed(once.values())), tuple(dict.fromkeys(notes)), asked)


def rehearse_template(site: SiteConfig, report: Report) -> Report:
    """The report with what is seen when the batch file runs, for one node and for four.

    Runs what the template and the site file say, on this machine: see `rehearsal.may_run`.
    """
    template, acts = report.template, list[Act]()
    for nodes, gpus in dict.fromkeys((SHAPES[0], SHAPES[-1])):
        values = sample_values(site, nodes, gpus)
        script = Script(
            text=render(template, values).text,
            job_name=str(values["job_name"]),
            spec=str(values["spec"]),
            shape=str(Shape(nodes, gpus)),
        )
        acts += rehearse(script)
    cure = 'begin with {% extends "slurm/train.sbatch.j2" %} and override only blocks'
    faults = {f"{act.story}: {fault}": None for act in acts for fault in act.faults}
    findings = tuple(Finding(str(template.path), 1, what, cure) for what in faults)
    refused = {f"on this machine it {act.seen}: no more of it was run": None
               for act in acts if act.refused}  # fmt: skip
    return replace(
        report,
        findings=report.findings + findings,
        notes=(*report.notes, *refused),
        acts=tuple(acts),
    )


def _as_finding(fault: UserError, template: Template) -> Finding:
    """A fault of rendering, which names its place as `file:line: ...`."""
    for source in template.sources:
        head, mark, rest = fault.message.partition(f"{source.path}:")
        line, colon, what = rest.partition(": ")
        if mark and not head and colon and line.isdigit():
            return Finding(source.path, int(line), what, fault.hint or "")
    return Finding(str(template.path), 1, fault.message, fault.hint or "")


def _bash(text: str, template: Template) -> Iterator[Finding]:
    """What `bash -n` says; nothing is run."""
    try:
        done = subprocess.run(
            ["bash", "-n"],  # noqa: S607 - the bash of the PATH is the one that reads the job
            input=text,
            capture_output=True,
            text=True,
            timeout=_BASH_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise UserError(f"bash -n cannot be run: {fault}") from None
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    first = said[0] if said else f"exit code {done.returncode}"
    number, near = _rendered_line(first, text)
    where = f"line {number} of the rendered text, {near!r}" if near else "the rendered text"
    yield _at(template, near, f"bash cannot read {where}: {first.rpartition(': ')[2]}",
              "`qvl-orchestrate template show --rendered` prints the text")  # fmt: skip


def _rendered_line(said: str, text: str) -> tuple[int, str]:
    for word in said.split():
        if word.rstrip(":").isdigit():
            number = int(word.rstrip(":"))
            lines = text.split("\n")
            return number, lines[number - 1].strip()[:60] if number <= len(lines) else ""
    return 0, ""


def _at(template: Template, near: str, what: str, cure: str) -> Finding:
    """At the line of the template that holds the text, else at its top."""
    for source in template.sources:
        for number, line in enumerate(source.text.split("\n"), 1):
            if near and near in line:
                return Finding(source.path, number, what, cure)
    return Finding(str(template.path), 1, what, cure)


_NOT_HERE = ("node configuration is not available", "node count", "allocation failure",
             "more processors requested", "partition", "account", "qos")  # fmt: skip
"""Words of sbatch for a job that is right, but that this cluster would not take."""


def _sbatch(text: str, template: Template, shape: Shape) -> tuple[list[Finding | str], bool]:
    """What `sbatch --test-only` says of the text; False where there is no Slurm to ask."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(text)
        file.flush()
        try:
            answer = commands.run(["sbatch", "--test-only", file.name])
        except UserError:
            return [], False
        except QvlError as fault:
            return [f"Slurm was not asked: {fault.message}"], False
    if answer.ok:
        return [], True
    if "configuration source" in answer.err:  # installed, but not set up
        return [], False
    said = [x for x in answer.err.splitlines() if x.strip() and not x.startswith("Try ")]
    words = (said or [answer.words])[0].removeprefix("sbatch: ").removeprefix("error: ")
    if any(sign in words.lower() for sign in _NOT_HERE):
        return [f"this cluster takes no job of {shape}: {words}"], True
    cure = "`sbatch --test-only` says so of what `qvl-orchestrate template show --rendered` prints"
    option = re.search(r"--[a-z-]+", words)
    return [
        _at(template, option[0] if option else "", f"sbatch refuses the job: {words}", cure)
    ], True
