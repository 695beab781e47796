"""`checkpoints`: list a run's checkpoints, and verify them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import get_run, json_option, note, out, out_json
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from orchestrator.contract.manifest import FileEntry
    from orchestrator.contract.records import LogRecord
    from orchestrator.controller.run import Run
    from orchestrator.storage.runlog import LogView

_STATES = {"retire": "retired", "bad": "bad"}
_HELP = """List the checkpoints of RUN, oldest first.

\b
  committed  complete; a resume starts from the newest one
  retired    given up for newer ones, its files removed
  bad        found damaged, never used again, its files kept

--verify reads every file of the committed ones and compares its hash; the exit code is 73
if one is damaged. Nothing is changed: the next attempt verifies for itself.
"""
_EXAMPLES = """\b
Examples:
  qvl-orchestrate checkpoints digits
  qvl-orchestrate checkpoints digits --verify --json
"""


@click.command("checkpoints", help=_HELP, epilog=_EXAMPLES)
@click.argument("run")
@click.option("--verify", is_flag=True, help="Read and hash the files of the committed ones.")
@json_option
def command(*, run: str, verify: bool, as_json: bool) -> int:
    """List checkpoints (see `_HELP`)."""
    from orchestrator.storage.runlog import RunLog

    chosen = get_run(run)
    log = RunLog(chosen.storage, chosen.clock)
    view = log.read()
    for seq in view.unreadable:
        note(f"warning: record {seq} of the run's log cannot be read and is passed over")
    faults: dict[int, CheckpointError] = {}
    if verify:
        faults = _verify(chosen, view)
        if faults:  # a checkpoint that was retired while we read it is not damaged
            view = log.read()
    states = _states(view)
    faults = {seq: fault for seq, fault in faults.items() if states[seq] == "committed"}
    rows = [_row(chosen, r, states[r.seq]) for r in view.records if r.seq in states]
    if verify:
        for row, seq in zip(rows, states, strict=True):
            row["verified"] = seq not in faults if row["state"] == "committed" else None
    if as_json:
        out_json(rows)
    else:
        _print(rows)
    for fault in faults.values():
        note(f"error: {fault.message}")
    return CheckpointError.exit_code if faults else 0


def _states(view: LogView) -> dict[int, str]:
    """State of each commit by its number in the log, oldest first."""
    states: dict[int, str] = {}
    for record in view.records:
        if record.kind == "commit":
            states[record.seq] = "committed"
        elif record.kind in _STATES:
            states[record.retire().commit_seq] = _STATES[record.kind]
    return states


def _row(run: Run, record: LogRecord, state: str) -> dict[str, Any]:
    commit = record.commit()
    return {
        "step": commit.step,
        "attempt": record.attempt,
        "path": f"{run.storage.uri}/{commit.directory}",
        "state": state,
        "size_bytes": commit.size_bytes,
        "adapter_sha256": commit.adapter_sha256,
    }


def _verify(run: Run, view: LogView) -> dict[int, CheckpointError]:
    """What is wrong with the committed ones, by their number in the log."""
    from orchestrator.storage.checkpoints import live_commits, verify

    faults = {}
    for record in live_commits(view):
        with _Progress.of(record) as progress:
            try:
                verify(run.storage, record, on_file=progress.add)
            except CheckpointError as fault:
                faults[record.seq] = fault
    return faults


class _Progress:
    """Bytes read of one checkpoint, on stderr if that is a terminal."""

    def __init__(self, record: LogRecord) -> None:
        self._commit = record.commit()
        self._done = 0

    @classmethod
    @contextmanager
    def of(cls, record: LogRecord) -> Iterator[_Progress]:
        """Clears its line at the end."""
        try:
            yield cls(record)
        finally:
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")

    def add(self, file: FileEntry) -> None:
        """A file was found right (called by several threads; a lost count does no harm)."""
        self._done += file.size_bytes
        if sys.stderr.isatty():
            share = 100 * self._done // max(1, self._commit.size_bytes)
            sys.stderr.write(f"\r\x1b[Kverifying step {self._commit.step}: {share} %")
            sys.stderr.flush()


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from orchestrator.cli.table import aligned, size

    if not rows:
        note("no checkpoint yet")
        return
    marks = {True: "verified", False: "DAMAGED", None: ""}
    table = [["step", "attempt", "state", "", "size", "adapter", "path"]]
    table += [
        [
            str(row["step"]),
            str(row["attempt"]),
            row["state"],
            marks[row.get("verified")],
            size(row["size_bytes"]),
            row["adapter_sha256"][:12],
            row["path"],
        ]
        for row in rows
    ]
    for line in aligned(table, right=(0, 1, 4)):
        out(line)
