"""`preempt`: deliver a notice as a scheduler would."""

from __future__ import annotations

import click

from orchestrator.cli.common import get_run, json_option, out, out_json

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
_HELP = """Deliver a preemption notice to RUN as a scheduler would.

The run saves a checkpoint within its grace time, stops, and is started again by its
controller: nothing is lost. Refused (78) where no job is at work.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate preempt digits
  qvl-orchestrate preempt digits --signal SIGUSR1 --rank 1
"""


@click.command("preempt", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option(
    "--signal", type=click.Choice(SIGNALS), default="SIGTERM", show_default=True, help="Signal."
)
@click.option(
    "--rank",
    "ranks",
    type=click.IntRange(min=0),
    multiple=True,
    help="To this rank only; may be repeated (default: to the agent).",
)
@json_option
def command(*, run: str, signal: str, ranks: tuple[int, ...], as_json: bool) -> int:
    """Deliver a notice (see `_HELP`)."""
    from orchestrator.operations.actions import preempt

    chosen = get_run(run, alone=True, live=True)
    preempt(chosen, signal, ranks)
    if as_json:
        out_json({"run_id": chosen.run_id, "signal": signal, "ranks": list(ranks)})
        return 0
    whom = f"rank {', '.join(map(str, ranks))}" if ranks else "its agent"
    out(f"{chosen.run_id}: {signal} delivered to {whom}; it saves, stops and is started again")
    out(f"  progress  qvl-orchestrate status {chosen.run_id}")
    return 0
