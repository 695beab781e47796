"""`controller once|run|unit`: look after all runs of this user."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import json_option, note, out, out_data, out_json, registry

if TYPE_CHECKING:
    from orchestrator.controller.loop import Rounds
    from orchestrator.controller.reconcile import Step
    from orchestrator.controller.trust import Trusted
    from orchestrator.errors import QvlError
    from orchestrator.registry.store import Registry

_HELP = """Look after runs: start what was preempted, record what has ended.

`submit` leaves a controller for its run; these commands take up runs that lost theirs
(after a reboot), and serve sites that prefer one controller for all. Of other users' runs only
those are looked after that `adopt` with --trust or trust: in site.yaml names.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate controller once
  qvl-orchestrate controller run --interval 30
  qvl-orchestrate controller unit
"""
_ONCE = """One pass over every run that has not ended, a line each. Good for cron.

Exit code 0, or that of the first run that could not be looked after (69: its storage or
backend does not answer; 73: a damaged record).
"""
_ONCE_EXAMPLES = """\b
Example:
  qvl-orchestrate controller once --json
"""
_RUN = "Pass after pass until interrupted (Ctrl-C or SIGTERM); prints what has changed."
_RUN_EXAMPLES = """\b
Example:
  qvl-orchestrate controller run --interval 30
"""


_UNIT = """Print a systemd user unit that keeps `qvl-orchestrate controller run` alive here.

It holds the paths of this installation and of this state folder, and PATH, by which the scheduler's
commands are found. Lingering lets it live on when you log out, where the site allows it.
"""
_UNIT_EXAMPLES = """\b
Example:
  qvl-orchestrate controller unit > ~/.config/systemd/user/qvl-orchestrate.service
  systemctl --user daemon-reload
  systemctl --user enable --now qvl-orchestrate
  loginctl enable-linger
"""


@click.group("controller", help=_HELP, epilog=_EXAMPLES)
def command() -> None:
    """Look after runs (see `_HELP`)."""


@command.command("once", help=_ONCE, epilog=_ONCE_EXAMPLES)
@json_option
def once(*, as_json: bool) -> int:
    """One pass (see `_ONCE`)."""
    report = _Report(as_json)
    everything = registry()
    live = sum(not entry.final for entry in everything.runs())
    _pass(everything, report, _trusted())
    if not as_json:
        _summary(live, report.seen)
    return report.exit_code


@command.command("run", help=_RUN, epilog=_RUN_EXAMPLES)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Longest time between passes, in seconds.",
)
@click.option(
    "--discover", is_flag=True, help="Also the runs that this Kubernetes namespace knows of."
)
@json_option
def run(*, interval: float, discover: bool, as_json: bool) -> int:
    """Pass after pass (see `_RUN`)."""
    from orchestrator.clock import SystemClock
    from orchestrator.controller.loop import Rounds

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = _Report(as_json, changes_only=True)
    rounds = Rounds(registry(), SystemClock(), _trusted())
    note(f"looking after runs at least every {interval:g} s; Ctrl-C ends it, runs go on")
    try:
        while True:
            if discover:
                _discover(rounds, report)
            rounds.once(report)
            rounds.wait(interval)
    except KeyboardInterrupt:
        note(
            "interrupted; `qvl-orchestrate controller once`, or another controller, "
            "takes the runs up again"
        )
    finally:
        rounds.close()
    return 0


@command.command("unit", help=_UNIT, epilog=_UNIT_EXAMPLES)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Longest time between passes, in seconds.",
)
@json_option
def unit(*, interval: float, as_json: bool) -> int:
    """Print the unit (see `_UNIT`)."""
    import os
    import sys

    from orchestrator.cli.services.systemd_unit import unit_text

    text = unit_text(sys.executable, registry().state_dir, os.environ, interval)
    if as_json:
        out_json({"text": text})
    else:
        out_data(text.rstrip("\n") + "\n")
    return 0


def _discover(rounds: Rounds, report: Callable[[str, Step | QvlError], None]) -> None:
    from orchestrator.errors import Unreachable

    try:
        rounds.discover(report)
    except Unreachable as fault:
        note(fault.message)


def _trusted() -> Trusted:
    from orchestrator.config.reading.site_file import site_file
    from orchestrator.controller.trust import Trusted

    if site_file() is None:
        return Trusted()
    from orchestrator.config.load import load_site

    named = load_site().trust
    return Trusted(roots=named.roots, uids=named.uids)


def _pass(
    everything: Registry, report: Callable[[str, Step | QvlError], None], trusted: Trusted
) -> None:
    from orchestrator.clock import SystemClock
    from orchestrator.controller import loop

    loop.once(everything, SystemClock(), report, trusted)


def _summary(live: int, seen: int) -> None:
    if not live:
        out("no run needs a controller now")
    elif live > seen:
        out(f"{live - seen} with a controller of their own")


class _Report:
    """Prints what a pass found of a run; remembers the exit code of the first fault."""

    def __init__(self, as_json: bool, *, changes_only: bool = False) -> None:
        self._as_json = as_json
        self._changes_only = changes_only
        self._last: dict[str, tuple[object, ...]] = {}
        self.seen = 0
        self.exit_code = 0

    def __call__(self, run_id: str, found: Step | QvlError) -> None:
        self.seen += 1
        if isinstance(found, Exception):
            self.exit_code = self.exit_code or found.exit_code
            answer = {"run_id": run_id, "state": None, "error": found.message}
        else:
            answer = {"run_id": run_id, "state": found.state.value, "next": found.row["next"]}
        mark = tuple(answer.values())
        if self._changes_only and self._last.get(run_id) == mark:
            return
        self._last[run_id] = mark
        self._print(answer)

    def _print(self, answer: dict[str, str | None]) -> None:
        if self._as_json:
            out_json(answer)
            return
        more = answer.get("error") or answer.get("next") or ""
        out(f"{answer['run_id']}  {answer['state'] or 'error'}  {more}".rstrip())
