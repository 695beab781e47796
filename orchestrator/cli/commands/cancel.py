"""`cancel`: stop a run for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import get_run, json_option, out, out_json

if TYPE_CHECKING:
    from orchestrator.controller.run import Run

SETTLE_S = 1.0
_HELP = """Cancel RUN for good. A job at work gets its grace time to save first.

Nothing but `resume` starts the run again, and its checkpoints stay. A run that has ended
already is left as it is (exit code 0); cancelling twice does no harm.
"""
_EXAMPLES = """\b
Example:
  qvl-orchestrate cancel digits
"""


@click.command("cancel", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@json_option
def command(*, run: str, as_json: bool) -> int:
    """Cancel a run (see `_HELP`)."""
    from orchestrator.operations.actions import cancel

    chosen = get_run(run, alone=True, live=True, gone=True)
    acted = not chosen.entry.final and cancel(chosen)
    state = _state(chosen) if acted or not chosen.entry.final else _known(chosen)
    if as_json:
        out_json({"run_id": chosen.run_id, "state": state, "cancelled": acted})
    else:
        out(_sentence(chosen.run_id, state, acted))
    return 0


def _known(run: Run) -> str:
    return str((run.entry.row or {}).get("state", "QUEUED"))


def _state(run: Run) -> str:
    """The state after a pass of ours, or of the run's controller if that comes soon."""
    from orchestrator.controller.loop import look_after

    end = run.clock.monotonic() + SETTLE_S
    while True:
        entry = run.registry.find(run.run_id)
        if entry.final and entry.row is not None:
            return str(entry.row["state"])
        step = look_after(run)
        if step is not None:
            return step.state.value
        if run.clock.monotonic() > end:
            return "CANCELLING"
        run.clock.sleep(0.1)


def _sentence(run_id: str, state: str, acted: bool) -> str:
    if not acted:
        return f"{run_id} has ended already ({state}); there is nothing to cancel"
    if state == "CANCELLED":
        cure = f"`qvl-orchestrate resume {run_id}` would go on from there"
        return f"{run_id} is cancelled; its checkpoints stay ({cure})"
    return f"{run_id} is being cancelled: it saves within its grace time, then ends for good"
