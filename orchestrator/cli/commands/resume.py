"""`resume`: go on with a run that is held, failed or cancelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.common import asked_as, get_run, json_option, note, out, out_json, site_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.contract.resolved import ResolvedJob

_HELP = """Go on with RUN after it was held, has failed or was cancelled.

It starts from its newest good checkpoint unless --from or --restart-from says otherwise.
What differs from what was saved is refused unless --allow-change names the field; a held
run's `status` says which. With --wait, exit codes are those of `submit` with --wait.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate resume digits
  qvl-orchestrate resume digits --from checkpoint-20
  qvl-orchestrate resume digits --allow-change training.learning_rate \\
      --job job.yaml --set training.learning_rate=1e-4
  qvl-orchestrate resume digits --restart-from weights
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which run, and from where it goes on."""

    run: str
    ref: str | None
    restart_from: Literal["weights", "scratch"] | None
    allow_change: tuple[str, ...]
    job: Path | None
    overrides: tuple[str, ...]
    site: Path | None
    reset_batch_plan: bool
    wait: bool
    as_json: bool


@click.command("resume", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option(
    "ref",
    "--from",
    metavar="latest|CHECKPOINT|PATH",
    help="A step, checkpoint-<step>, or a folder (/... or ./...).",
)
@click.option(
    "--restart-from",
    type=click.Choice(["weights", "scratch"]),
    help="Adapter weights only, with a fresh optimizer; or anew from step 0.",
)
@click.option("--allow-change", multiple=True, metavar="FIELD", help="This field may differ.")
@click.option("--job", type=click.Path(path_type=Path), help="Go on with this changed job file.")
@click.option(
    "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Replace a field of --job."
)
@site_option
@click.option("--reset-batch-plan", is_flag=True, help="Return to the original micro-batch size.")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@json_option
@asked_as(Asked)
def command(asked: Asked) -> int:
    """Resume a run (see `_HELP`)."""
    from orchestrator.cli.services.follow import follow_to_end, leave_controller
    from orchestrator.operations import actions

    if asked.restart_from == "scratch" and asked.ref is not None:
        raise UsageError("--restart-from scratch starts without a checkpoint: leave out --from")
    if asked.overrides and asked.job is None:
        raise UsageError("--set needs --job", hint="name the job file whose fields it replaces")
    chosen = get_run(asked.run, alone=asked.restart_from is not None)
    resumed = actions.resume(
        chosen,
        ref=asked.ref,
        restart_from=asked.restart_from,
        allow_change=asked.allow_change,
        reset_batch_plan=asked.reset_batch_plan,
        job=_changed_job(asked),
    )
    number = resumed.submission
    for line in resumed.unchecked:
        note(f"not checked: {line}")
    if asked.as_json:
        attended = leave_controller(chosen)
        out_json({"run_id": chosen.run_id, "submission": number, "attended": attended})
    else:
        try:
            _announce(chosen.run_id, number)
        finally:
            leave_controller(chosen)
    return follow_to_end(chosen) if asked.wait else 0


def _changed_job(asked: Asked) -> ResolvedJob | None:
    if asked.job is None:
        return None
    from orchestrator.cli.services.job import read_job

    return read_job(asked.job, asked.overrides, asked.site)[0]


def _announce(run_id: str, number: int) -> None:
    out(f"{run_id} goes on (submission {number})")
    out(f"  progress  qvl-orchestrate status {run_id}")
