"""`drill`: a short copy of a job is preempted on purpose, and compared with an undisturbed one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import (
    asked_as,
    json_option,
    note,
    out,
    out_json,
    set_option,
    site_option,
    template_option,
)
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.contract.resolved import ResolvedJob
    from orchestrator.controller.run import Run
    from orchestrator.operations.drill import Check, Side, Timeline

_HELP = """Prove that the job JOB survives a preemption here, with its own model, data and template.

Two short copies of the job run one after the other: one is preempted on its way, one is not. Shown
are the seconds from the notice to each thing that must happen, and whether both runs computed
the same. On Slurm, --preempt-with names a partition whose jobs preempt the copy; without it,
the notice is delivered as a signal.

\b
Exit codes:
  0   every check passed
  1   something did not; both runs are kept to look at
  78  the job file or the site file is wrong
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate drill job.yaml
  qvl-orchestrate drill job.yaml --steps 20 --set resources.time_limit=20m
  qvl-orchestrate drill job.yaml --preempt-with high --tolerance 1e-3
"""
POLL_S = 0.3
_ROWS = (
    ("agreed", "all ranks agreed to stop"),
    ("saving", "the save began"),
    ("durable", "the checkpoint was durable"),
    ("left", "the attempt had left"),
    ("requeued", "the next attempt had started"),
    ("first_step", "its first step was done"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the copies are made from, and how one is preempted."""

    job: Path
    steps: int
    overrides: tuple[str, ...]
    site: Path | None
    template: Path | None
    signal: str
    preempt_with: str | None
    tolerance: float
    keep: bool
    as_json: bool


@click.command("drill", help=_HELP, epilog=_EXAMPLES)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(4, 10_000), default=12, show_default=True,
              help="Optimizer steps of each copy.")  # fmt: skip
@set_option
@site_option
@template_option
@click.option("--signal", type=click.Choice(("SIGTERM", "SIGUSR1", "SIGUSR2")),
              default="SIGTERM", show_default=True, help="The notice.")  # fmt: skip
@click.option("--preempt-with", metavar="PARTITION", help="Slurm: preempt by a job there.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Relative difference of losses that is allowed; 0 = bit for bit.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep both runs in any case.")
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Drill a job (see `_HELP`)."""
    from orchestrator.operations.drill import judge, timelines

    disturbed = _submit(asked, "drill-a")
    _preempt_at(disturbed, asked, max(1, asked.steps // 3))
    _follow(disturbed)
    undisturbed = _submit(asked, "drill-b")
    _follow(undisturbed)
    sides = _side(disturbed), _side(undisturbed)
    lines = timelines(_events(disturbed), sides[0].curve)
    grace_s = disturbed.job().preemption.grace_s
    checks = judge(*sides, lines, grace_s=grace_s, tolerance=asked.tolerance)
    passed = all(check.ok for check in checks)
    _show(lines, checks, [disturbed, undisturbed], as_json=asked.as_json)
    if passed and not asked.keep:
        _remove(disturbed, undisturbed)
    return 0 if passed else 1


def _submit(asked: Asked, suffix: str) -> Run:
    """A short copy of the job under a name of its own, with a controller."""
    from orchestrator.cli.services.follow import leave_controller
    from orchestrator.cli.services.job import read_job
    from orchestrator.config.load import load_job
    from orchestrator.operations.submit import name_of_copy, submit

    name = load_job(asked.job, asked.overrides).spec.name
    short = (
        f"name={name_of_copy(name, suffix)}",
        f"training.max_steps={asked.steps}",
        f"checkpoint.every_steps={asked.steps}",
        "checkpoint.every_minutes=null",
    )
    overrides = (*asked.overrides, *short)
    resolved, text, by = read_job(asked.job, overrides, asked.site, asked.template)
    _check_backend(resolved, asked)
    run = submit(resolved, text, by)
    leave_controller(run)
    note(f"submitted {run.run_id}")
    return run


def _check_backend(job: ResolvedJob, asked: Asked) -> None:
    if asked.preempt_with and job.backend != "slurm":
        raise UserError("--preempt-with is for backend: slurm", hint="leave it out")


def _preempt_at(run: Run, asked: Asked, step: int) -> None:
    """Wait until a step is done, then take the resources away. No notice if it ended before."""
    from orchestrator.cli.services.follow import END_CODES
    from orchestrator.operations.actions import preempt
    from orchestrator.operations.status import refresh

    while (done := _step(run)) < step:
        row = refresh(run.registry, run.clock, run.registry.find(run.run_id)).row
        if row["state"] in END_CODES:
            return
        run.clock.sleep(POLL_S)
    note(f"step {done} of {asked.steps}: preempting")
    if asked.preempt_with is None:
        preempt(run, asked.signal)
        return
    from orchestrator.controller.observe import observe
    from orchestrator.doctor.probe import nodes_of, take_nodes

    job = observe(run).job
    if job is not None:
        take_nodes(asked.preempt_with, nodes_of(job))


def _step(run: Run) -> int:
    """The last step that is known to be done."""
    from orchestrator.run_directory.attempts import read_summary
    from orchestrator.run_directory.curve import read_curve

    summary = read_summary(run.storage)
    curve = read_curve(run.storage)
    return max(summary.step if summary else 0, curve[-1].step if curve else 0)


def _follow(run: Run) -> None:
    from orchestrator.cli.services.follow import INTERRUPTED, follow_to_end

    if follow_to_end(run) == INTERRUPTED:
        raise click.Abort


def _side(run: Run) -> Side:
    from orchestrator.clock import SystemClock
    from orchestrator.operations.drill import Side
    from orchestrator.run_directory.attempts import attempt_numbers
    from orchestrator.run_directory.curve import read_curve
    from orchestrator.run_directory.runlog import RunLog

    done = RunLog(run.storage, SystemClock()).read().done()
    row = run.registry.find(run.run_id).row or {}
    return Side(
        state=str(row.get("state")),
        attempts=len(attempt_numbers(run.storage)),
        curve=tuple(read_curve(run.storage)),
        adapter_sha256=done.done().adapter_sha256 if done else None,
    )


def _events(run: Run) -> Any:
    from orchestrator.cli.services.tail import Tail, new_events

    return new_events(run.storage, Tail(run.storage))


def _remove(*runs: Run) -> None:
    from orchestrator.operations.actions import remove

    for run in runs:
        remove(run)


def _show(
    lines: tuple[Timeline, ...], checks: tuple[Check, ...], runs: list[Run], *, as_json: bool
) -> None:
    from orchestrator.contract.jsonio import to_json

    passed = all(check.ok for check in checks)
    if as_json:
        found = {"ok": passed, "preemptions": to_json(lines), "checks": to_json(checks)}
        out_json({**found, "runs": [run.run_id for run in runs]})
        return
    for line in lines:
        out(f"attempt {line.attempt}, seconds from the notice:")
        for field, words in _ROWS:
            value = getattr(line, field)
            out(f"  {'never' if value is None else f'{value:.2f}':>8}  {words}")
    for check in checks:
        out(f"{'passed' if check.ok else 'FAILED'}  {check.what} ({check.detail})")
    if not passed:
        for run in runs:
            out(f"  look at  qvl-orchestrate events {run.run_id}")
