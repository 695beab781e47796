"""`repair`: what of a run is damaged, and its log made anew from its checkpoints."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.common import get_run, json_option, out, out_json

DAMAGED = 73
_HELP = """Show what of RUN is damaged, and what can be made good.

The log of a run says which checkpoints count. Where it was lost, in whole or in part (a rule of
the storage that expires objects, a backup restored half), the run is held and nothing is deleted.
This command reads every file of the checkpoints that the log does not know any more, and shows
the log that follows from them. With --yes it takes the place of the damaged one, of which a copy
stays in the run directory (damaged/). No file is deleted. Then `resume` goes on.

Exit code 73 if something is damaged and was not made good.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate repair digits
  qvl-orchestrate repair digits --yes
"""


@click.command("repair", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("--yes", is_flag=True, help="Put the new log in the place of the damaged one.")
@json_option
def command(*, run: str, yes: bool, as_json: bool) -> int:
    """Examine a run, or repair it (see `_HELP`)."""
    from orchestrator.operations.repair import examine, repair

    chosen = get_run(run)
    found = (repair if yes else examine)(chosen)
    answer = _answer(chosen.run_id, found, repaired=yes and bool(found.log_fault))
    if as_json:
        out_json(answer)
    else:
        _print(answer)
    left = found.damage or (found.log_fault and not yes)
    return DAMAGED if left else 0


def _answer(run_id: str, found: Any, *, repaired: bool) -> dict[str, Any]:
    lines = [
        {
            "step": c.body.step,
            "attempt": c.attempt,
            "directory": c.body.directory,
            "fault": c.fault or None,
        }
        for c in sorted(found.found, key=lambda c: (c.attempt, c.body.step))
    ]
    command = "resume" if repaired else "repair"
    following = f"qvl-orchestrate {command} {run_id}" + ("" if repaired else " --yes")
    return {
        "run_id": run_id,
        "log": found.log_fault or None,
        "damage": found.damage or None,
        "passed_over": list(found.damaged),
        "records": {"kept": found.kept, "new": len(found.records)},
        "checkpoints": lines,
        "repaired": repaired,
        "old_log": found.copy,
        "next": following if found.log_fault else None,
    }


def _print(answer: dict[str, Any]) -> None:
    for path in answer["passed_over"]:
        out(f"damaged, and passed over: {path}")
    if answer["damage"]:
        out(answer["damage"])
    if answer["log"] is None:
        if not answer["damage"]:
            out("the run's log is whole: nothing to repair")
        return
    out(answer["log"])
    for line in answer["checkpoints"]:
        state = f"marked bad: {line['fault']}" if line["fault"] else "verified"
        out(f"step {line['step']}, attempt {line['attempt']}: {state}")
    records = answer["records"]
    verb = "was" if answer["repaired"] else "would be"
    out(f"the log {verb} made anew: {records['new']} records, {records['kept']} of them kept")
    if answer["repaired"]:
        out(f"the old log is in {answer['old_log']}")
    out(f"next: {answer['next']}")
