"""`adopt`: run directories that this machine's registry does not know."""

from __future__ import annotations

import click

from orchestrator.cli.common import json_option, note, out, out_json, registry

_HELP = """Enter run directories into this machine's registry, all of them or none.

For runs that were submitted on another login node, or after the registry was lost. Nothing
in the directories is changed, and a run that is known already keeps its entry.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate adopt /shared/runs/*
  qvl-orchestrate adopt s3://bucket/runs/digits-261124-a1b2c3
"""


@click.command("adopt", help=_HELP, epilog=_EXAMPLES)
@click.argument("directories", metavar="DIR...", nargs=-1, required=True)
@json_option
def command(*, directories: tuple[str, ...], as_json: bool) -> int:
    """Adopt runs (see `_HELP`)."""
    from orchestrator.clock import SystemClock
    from orchestrator.controller.status import remember
    from orchestrator.registry.rebuild import read_entry

    known = registry()
    entries = [read_entry(directory) for directory in directories]
    aside = known.rebuild()
    if aside is not None:
        note(f"the registry was damaged and is now {aside}; a new one was begun")
    for entry in entries:
        known.add(entry)
        remember(known, SystemClock(), entry)
    if as_json:
        out_json({"runs": [{"run_id": e.run_id, "run_dir": e.uri} for e in entries]})
        return 0
    for entry in entries:
        out(f"adopted {entry.run_id}  {entry.uri}")
    out(
        "`qvl-orchestrate status` shows them; "
        "`qvl-orchestrate controller once` goes on with those that have to"
    )
    return 0
