"""`status`: how the runs look, at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import escape
from orchestrator.cli.common import json_option, out_drawn, out_json, registry

if TYPE_CHECKING:
    from orchestrator.operations.status import Snapshot
    from orchestrator.registry.store import Registry, RunEntry

RECENT = 20
"""Runs that have ended and are shown without --all."""
WATCH_S = 2.0
WHY = ("HELD", "FAILED")
"""States that are shown with their reason."""
_HOME_AND_CLEAR = "\x1b[H\x1b[2J"
_HELP = """Show each RUN, or all live runs and the last 20 that have ended.

A checkpoint is shown as its step, a mark (checked once it was read back and found right,
else ?) and its age. Nothing is changed; runs that have ended are not asked for again.
A run that cannot be refreshed is shown as it was last seen, and says so: in JSON, `stale_s` is
the age of a row in seconds (null: never seen), `last_seen` its time, `fault` the reason.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate status
  qvl-orchestrate status digits -v
  qvl-orchestrate status --watch
  qvl-orchestrate status --json | jq '.runs[] | select(.state == "HELD")'
"""


@click.command("status", help=_HELP, epilog=_EXAMPLES)
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Also runs that ended long ago.")
@click.option("--watch", is_flag=True, help="Show again every 2 s until Ctrl-C.")
@click.option("-v", "--verbose", is_flag=True, help="Also directory, job, reason, message, nodes.")
@json_option
def command(
    *, runs: tuple[str, ...], every: bool, watch: bool, verbose: bool, as_json: bool
) -> int:
    """Show runs (see `_HELP`)."""
    known = registry()
    if not watch:
        _show(known, runs, every=every, verbose=verbose, as_json=as_json)
        return 0
    from orchestrator.clock import SystemClock

    clear = _HOME_AND_CLEAR if sys.stdout.isatty() and not as_json else ""
    with suppress(KeyboardInterrupt):
        while True:
            _show(known, runs, every=every, verbose=verbose, as_json=as_json, before=clear)
            sys.stdout.flush()
            SystemClock().sleep(WATCH_S)
    return 0


def _show(
    known: Registry,
    names: Sequence[str],
    *,
    every: bool,
    verbose: bool,
    as_json: bool,
    before: str = "",
) -> None:
    from orchestrator.clock import SystemClock
    from orchestrator.controller.status_rows import age_fields, public_row
    from orchestrator.operations.status import snapshot

    clock = SystemClock()
    entries, left_out = _choose(known, names, every)
    found = snapshot(known, clock, entries)
    now = clock.now()
    public = [public_row(s.row, now) for s in found]
    if as_json:
        ages = [age_fields(s.seen_at, now, final=s.final, fault=s.fault) for s in found]
        told = [{**row, **age} for row, age in zip(public, ages, strict=True)]
        out_json({"runs": told, **({"not_shown": left_out} if left_out else {})})
        return
    text = _table(entries, found, public, verbose) + _footer(entries, found, left_out, now)
    if verbose:
        text += _excluded()
    out_drawn(before + text)


def _excluded() -> str:
    """The nodes that new jobs keep away from, a line each."""
    from orchestrator.cli.services.nodes import excluded_now, node_line

    lines = [node_line(node) for node in excluded_now()]
    return "".join(
        f"{escape.line(line)}\n"
        for line in [*lines, *(["  qvl-orchestrate nodes clear"] if lines else [])]
    )


def _choose(known: Registry, names: Sequence[str], every: bool) -> tuple[list[RunEntry], int]:
    """The runs to show, and how many of the ended ones are left out."""
    if names:
        return list({e.run_id: e for e in map(known.find, names)}.values()), 0
    entries = known.runs()
    hidden = set() if every else {e.run_id for e in [e for e in entries if e.final][:-RECENT]}
    return [e for e in entries if e.run_id not in hidden], len(hidden)


def _table(
    entries: Sequence[RunEntry],
    found: Sequence[Snapshot],
    public: Sequence[dict[str, Any]],
    verbose: bool,
) -> str:
    from orchestrator.cli.output import table

    if not found:
        return (
            "No runs yet. `qvl-orchestrate init` writes a job file to start from, "
            "`qvl-orchestrate submit job.yaml` starts it.\n"
        )
    symbols = table.symbols_shown()
    body = [
        table.status_cells(s.row, p, symbols=symbols) for s, p in zip(found, public, strict=True)
    ]
    more = [_more(e, s, verbose) for e, s in zip(entries, found, strict=True)]
    return (table.drawn if sys.stdout.isatty() else table.plain)(body, more)


def _more(entry: RunEntry, snapshot: Snapshot, verbose: bool) -> list[str]:
    """Lines below a run: why it could not be refreshed, and the details of -v."""
    from orchestrator.clock import iso

    facts: list[tuple[str, str | None]] = []
    if snapshot.fault is not None:
        seen = f"as of {iso(snapshot.seen_at)[:19]}Z" if snapshot.seen_at else "never seen yet"
        facts.append((f"not refreshed ({seen})", snapshot.fault))
    if fault := snapshot.row.get("save_fault"):
        facts.append(("saves fail", f"since {fault['since'][11:19]} UTC: {fault['message']}"))
    if snapshot.row.get("storage_wait"):
        facts.append(("storage", snapshot.row.get("message")))
    elif not verbose and snapshot.row["state"] in WHY and snapshot.fault is None:
        facts.append((f"why ({snapshot.row.get('reason')})", snapshot.row.get("message")))
    needs, grace = snapshot.row.get("save_seconds"), snapshot.row.get("grace_s")
    if needs and grace and (verbose or needs > grace):
        facts.append(("a save", f"needs {needs:.1f} s, grace {grace:.0f} s"))
    template = snapshot.row.get("template")
    if template and (verbose or template.startswith("user:")):
        facts.append(("template", template))
    if verbose:
        facts += [
            ("start-up", _startup(snapshot.row.get("startup"))),
            ("run directory", entry.uri),
            ("job", snapshot.row.get("backend_job_id")),
            ("reason", snapshot.row.get("reason")),
            ("message", snapshot.row.get("message")),
        ]
    return [line for name, value in facts if value for line in _indented(f"{name}: {value}")]


def _indented(text: str) -> list[str]:
    first, *rest = text.splitlines()
    return [f"    {first}", *(f"      {line}" for line in rest)]


def _startup(stages: Mapping[str, float] | None) -> str | None:
    """Stage by stage; no sum, because rank 0 imports while the helper chooses."""
    if not stages:
        return None
    from orchestrator.contract.summary import STAGES

    ordered = [s for s in STAGES if s in stages] + sorted(set(stages) - set(STAGES))
    return ", ".join(f"{name} {stages[name]:.1f} s" for name in ordered)


def _footer(
    entries: Sequence[RunEntry], found: Sequence[Snapshot], left_out: int, now: float
) -> str:
    """When the oldest row of a live run was seen (those with a fault say it themselves)."""
    from orchestrator.clock import iso

    pairs = zip(entries, found, strict=True)
    seen = [s.seen_at for e, s in pairs if not e.final and s.fault is None and s.seen_at]
    older = f"; {left_out} older runs are not shown (--all)" if left_out else ""
    return f"as of {iso(min([*seen, now]))[:19]}Z{older}\n"
