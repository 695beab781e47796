"""`events`: what happened to a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.commands.logs import Tail, until_settled
from orchestrator.cli.common import get_run, json_option, out, out_json
from orchestrator.contract.event import KINDS

if TYPE_CHECKING:
    from orchestrator.contract.event import Event
    from orchestrator.storage.protocol import Storage

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


def new_events(storage: Storage, tail: Tail) -> list[Event]:
    """Events of all writers that were not seen before, by time."""
    from orchestrator.contract import layout
    from orchestrator.contract.event import Event
    from orchestrator.contract.jsonio import MalformedJson, from_json, loads
    from orchestrator.run_directory.attempts import attempt_numbers

    parents = [layout.EVENTS]
    parents += [f"{layout.attempt_dir(n)}events/" for n in attempt_numbers(storage)]
    found = []
    for folder in (folder for parent in parents for folder in tail.streams(parent)):
        for line in tail.new(folder):
            with suppress(MalformedJson):
                found.append(from_json(Event, loads(line)))
    return sorted(found, key=lambda e: (e.time, e.attempt or 0, e.writer, e.seq))


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
