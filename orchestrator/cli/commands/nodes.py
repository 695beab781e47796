"""`nodes list|clear`: the nodes that new jobs keep away from."""

from __future__ import annotations

import click

from orchestrator.cli.common import json_option, out, out_json, registry
from orchestrator.errors import UserError

_HELP = """Nodes that new jobs keep away from.

A node on which two attempts died soon after their start, without a checkpoint, is excluded for
a day from the jobs that are submitted from here (Slurm's --exclude). Errors that a run meets on
several nodes are its own and count against none.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate nodes list
  qvl-orchestrate nodes clear gpu07
"""
_LIST = "The excluded nodes: until when, and after which error."
_LIST_EXAMPLES = """\b
Example:
  qvl-orchestrate nodes list --json
"""
_CLEAR = """Use each NODE again, or all nodes; what happened on them is no longer counted.

For jobs that are submitted from now on; one that waits in the queue keeps what it was given.
"""
_CLEAR_EXAMPLES = """\b
Examples:
  qvl-orchestrate nodes clear
  qvl-orchestrate nodes clear gpu07 gpu08
"""


@click.group("nodes", help=_HELP, epilog=_EXAMPLES)
def command() -> None:
    """Excluded nodes (see `_HELP`)."""


@command.command("list", help=_LIST, epilog=_LIST_EXAMPLES)
@json_option
def show(*, as_json: bool) -> int:
    """List them (see `_LIST`)."""
    from orchestrator.cli.services.nodes import excluded_now, node_line

    found = excluded_now()
    if as_json:
        from orchestrator.contract.jsonio import to_json

        out_json({"nodes": [to_json(node) for node in found]})
        return 0
    for node in found:
        out(node_line(node))
    if not found:
        out("no node is excluded")
    return 0


@command.command("clear", help=_CLEAR, epilog=_CLEAR_EXAMPLES)
@click.argument("names", metavar="[NODE]...", nargs=-1)
@json_option
def clear(*, names: tuple[str, ...], as_json: bool) -> int:
    """Forgive nodes (see `_CLEAR`). Raises UserError for one that is not excluded."""
    from orchestrator.cli.services.nodes import excluded_now

    known = [node.node for node in excluded_now()]
    for name in names:
        if name not in known:
            raise UserError(
                f"node {name!r} is not excluded",
                hint=f"excluded: {', '.join(known) or 'none'}",
            )
    registry().forgive(names)
    cleared = list(names) or known
    if as_json:
        out_json({"cleared": cleared})
    else:
        out(f"used again: {', '.join(cleared) or 'no node was excluded'}")
    return 0
