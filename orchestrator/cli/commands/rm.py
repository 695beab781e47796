"""`rm`: delete a run and its directory."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from orchestrator.cli import escape
from orchestrator.cli.common import get_run, json_option, out, out_json
from orchestrator.errors import UsageError

_HELP = """Delete RUN: its directory with all checkpoints, and its entry in `status`.

Asks first in a terminal; elsewhere --yes is needed. A run that is at work is refused, and so
is a name that several runs have. One whose directory is gone already is forgotten.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate rm digits
  qvl-orchestrate rm digits --yes --keep-adapter ./adapter
"""


@click.command("rm", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--keep-adapter",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Copy the newest adapter there first.",
)
@json_option
def command(*, run: str, yes: bool, keep_adapter: Path | None, as_json: bool) -> int:
    """Delete a run (see `_HELP`)."""
    from orchestrator.operations.actions import remove
    from orchestrator.operations.removal import directory_gone

    chosen = get_run(run, alone=True, gone=True)
    gone = directory_gone(chosen.entry.uri)
    if not yes:
        _ask(
            f"Forget {chosen.run_id}, whose directory {chosen.storage.uri} is gone?"
            if gone
            else f"Delete {chosen.run_id} and everything in {chosen.storage.uri}?"
        )
    remove(chosen, keep_adapter=keep_adapter)
    kept = None if keep_adapter is None else str(keep_adapter.absolute())
    if as_json:
        out_json({"run_id": chosen.run_id, "removed": True, "adapter": kept})
    elif gone:
        out(f"forgot {chosen.run_id}: its directory {chosen.storage.uri} was gone already")
    else:
        out(f"removed {chosen.run_id}" + (f"; its adapter is in {kept}" if kept else ""))
    return 0


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody to ask whether to delete the run", hint="say --yes")
    click.confirm(escape.line(question), abort=True, err=True)
