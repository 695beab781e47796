"""`adopt`: run directories that this machine's registry does not know."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import escape
from orchestrator.cli.common import json_option, note, out, out_json, registry
from orchestrator.errors import NoSuchRun, UsageError, UserError

if TYPE_CHECKING:
    from orchestrator.controller.run import Run
    from orchestrator.registry.store import Registry, RunEntry

_HELP = """Enter run directories into this machine's registry, all of them or none.

For runs that were submitted on another login node, or after the registry was lost; of a run that
is known already, its id will do. Nothing in the directories is changed, and a run that is known
keeps its entry.

Anybody's run may be read. It is acted upon (by a controller, `resume`, `cancel`, `preempt`, and
what runs its interpreter) only if its directory belongs to you or root, and nobody else may write
to it. --trust lifts that: it shows interpreter, environment, code and settings first, and asks.
It holds as long as the directory keeps its owner, who can change what you saw. A run on an object
store, which names no owner, always needs it.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate adopt /shared/runs/*
  qvl-orchestrate adopt --trust s3://bucket/runs/digits-261124-a1b2c3
"""


@click.command("adopt", help=_HELP, epilog=_EXAMPLES)
@click.argument("directories", metavar="DIR...", nargs=-1, required=True)
@click.option("--trust", "trusting", is_flag=True, help="Show what would run, and let it.")
@click.option("--yes", is_flag=True, help="With --trust: do not ask.")
@json_option
def command(*, directories: tuple[str, ...], trusting: bool, yes: bool, as_json: bool) -> int:
    """Adopt runs (see `_HELP`)."""
    from orchestrator.controller import trust

    if yes and not trusting:
        raise UsageError("--yes belongs to --trust")
    known = registry()
    entries = [_entry(known, given) for given in directories]
    aside = known.rebuild()
    if aside is not None:
        note(f"the registry was damaged and is now {aside}; a new one was begun")
    for entry in entries:
        _refuse_another(known, entry)
    runs = [_opened(known, entry) for entry in entries]
    if trusting and not _agreed([trust.shown(run) for run in runs], yes=yes, as_json=as_json):
        raise click.Abort
    answers = [_adopt(run, trusting=trusting) for run in runs]
    if as_json:
        out_json({"runs": answers})
        return 0
    for answer in answers:
        out(f"adopted {answer['run_id']}  {answer['run_dir']}")
        if answer["only_read"]:
            out(f"  only read here: {answer['only_read']}")
            out(f"  to act upon it  qvl-orchestrate adopt --trust {answer['run_id']}")
    out(
        "`qvl-orchestrate status` shows them; "
        "`qvl-orchestrate controller once` goes on with those that have to"
    )
    return 0


def _entry(known: Registry, given: str) -> RunEntry:
    """The entry of a directory, or of the id of a run that is known."""
    from orchestrator.registry.rebuild import read_entry

    if "/" not in given:
        with suppress(NoSuchRun):
            return known.find(given)
    return read_entry(given)


def _refuse_another(known: Registry, entry: RunEntry) -> None:
    """Raise UserError where a run of that id lies elsewhere: its entry would lead here."""
    for other in known.runs():
        if other.run_id == entry.run_id and other.uri != entry.uri:
            raise UserError(f"run {entry.run_id} is known already, at {other.uri}")


def _opened(known: Registry, entry: RunEntry) -> Run:
    from orchestrator.clock import SystemClock
    from orchestrator.controller.run import open_entry

    return open_entry(known, entry, SystemClock())


def _adopt(run: Run, *, trusting: bool) -> dict[str, Any]:
    from orchestrator.controller import trust
    from orchestrator.operations.status import remember

    new = all(entry.run_id != run.run_id for entry in run.registry.runs())
    run.registry.add(run.entry)
    if trusting:
        trust.believe(run)
    elif new:
        trust.only_read(run)
    remember(run.registry, run.clock, run.entry)
    found = trust.objection(run)
    return {"run_id": run.run_id, "run_dir": run.entry.uri, "only_read": found}


def _agreed(shown: list[dict[str, Any]], *, yes: bool, as_json: bool) -> bool:
    """Show what would run; True if that is what the person wants."""

    for one in shown:
        say = note if as_json else out
        say(f"{one['run_id']} would run, with your rights:")
        for name, value in one.items():
            if name != "run_id" and value not in (None, [], {}):
                for line in _lines(name, value):
                    say(f"  {escape.line(line)}")
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError("nobody to ask whether to trust the run", hint="say --yes")
    return click.confirm("Trust it, as long as the directory has this owner?")


def _lines(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _lines(f"{name}.{key}", item)]
    first, *more = str(value).splitlines() or [""]
    return [f"{name}: {first}", *(f"    {line}" for line in more)]
