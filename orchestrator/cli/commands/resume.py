"""`resume`: go on with a run that is held, failed or cancelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.common import get_run, json_option, note, out, out_json
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
@click.option("--site", type=click.Path(path_type=Path), help="Site file instead of the usual.")
@click.option("--reset-batch-plan", is_flag=True, help="Return to the original micro-batch size.")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@json_option
def command(
    *,
    run: str,
    ref: str | None,
    restart_from: Literal["weights", "scratch"] | None,
    allow_change: tuple[str, ...],
    job: Path | None,
    overrides: tuple[str, ...],
    site: Path | None,
    reset_batch_plan: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Resume a run (see `_HELP`)."""
    from orchestrator.cli.services.follow import follow_to_end, leave_controller
    from orchestrator.operations import actions

    if restart_from == "scratch" and ref is not None:
        raise UsageError("--restart-from scratch starts without a checkpoint: leave out --from")
    if overrides and job is None:
        raise UsageError("--set needs --job", hint="name the job file whose fields it replaces")
    chosen = get_run(run, alone=restart_from is not None)
    number = actions.resume(
        chosen,
        ref=ref,
        restart_from=restart_from,
        allow_change=allow_change,
        reset_batch_plan=reset_batch_plan,
        job=_changed_job(job, overrides, site),
        tell=lambda line: note(f"not checked: {line}"),
    )
    if as_json:
        attended = leave_controller(chosen)
        out_json({"run_id": chosen.run_id, "submission": number, "attended": attended})
    else:
        try:
            _announce(chosen.run_id, number)
        finally:
            leave_controller(chosen)
    return follow_to_end(chosen) if wait else 0


def _changed_job(
    path: Path | None, overrides: tuple[str, ...], site: Path | None
) -> ResolvedJob | None:
    if path is None:
        return None
    from orchestrator.cli.commands.submit import read_job

    return read_job(path, overrides, site)[0]


def _announce(run_id: str, number: int) -> None:
    out(f"{run_id} goes on (submission {number})")
    out(f"  progress  qvl-orchestrate status {run_id}")
