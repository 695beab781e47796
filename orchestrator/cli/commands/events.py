"""`events`: what happened to a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import get_run, json_option, out, out_json
from orchestrator.cli.services.tail import Tail, new_events, until_settled
from orchestrator.contract.event import KINDS

if TYPE_CHECKING:
    from orchestrator.contract.event import Event

_HELP = """Show what happened to RUN, oldest first: notices, saves, restarts, verdicts.

With -f, go on until the run has ended or waits for a person.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate events digits
  qvl-orchestrate events digits --kind notice --kind committed
  qvl-orchestrate events -f --json digits
"""


@click.command("events", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is settled.")
@click.option(
    "kinds",
    "--kind",
    multiple=True,
    metavar="KIND",
    type=click.Choice(list(KINDS)),
    help="Only this kind (may be repeated).",
)
@json_option
def command(*, run: str, follow: bool, kinds: tuple[str, ...], as_json: bool) -> int:
    """Show events (see `_HELP`)."""
    chosen = get_run(run)
    tail = Tail(chosen.storage)
    _print(new_events(chosen.storage, tail), kinds, as_json)
    if follow:
        with suppress(KeyboardInterrupt):
            for _ in until_settled(chosen):
                _print(new_events(chosen.storage, tail), kinds, as_json)
    return 0


def _print(events: Iterable[Event], kinds: Collection[str], as_json: bool) -> None:
    from orchestrator.contract.jsonio import to_json

    for event in events:
        if kinds and event.kind not in kinds:
            continue
        if as_json:
            out_json(to_json(event))
        else:
            out(sentence(event))


def sentence(event: Event) -> str:
    """`2026-01-01T00:00:00Z  a2 r0       notice            reason=SIGTERM seconds_left=58.0`."""
    where = event.writer if event.attempt is None else f"a{event.attempt} {event.writer}"
    if event.rank is not None:
        where = f"a{event.attempt} r{event.rank}"
    message = event.data.get("message")
    parts = [f"{k}={_short(v)}" for k, v in event.data.items() if k != "message" and v is not None]
    told = " ".join([*parts, *([str(message)] if message else [])])
    return f"{event.time[:19]}Z  {where:<10}  {event.kind:<16}  {told}".rstrip()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ",".join(f"{k}:{_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return str(value)
