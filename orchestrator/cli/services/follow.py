"""`--wait`: follow a run to its end, with its progress on stderr."""

from __future__ import annotations

import sys
from typing import Any

from orchestrator.cli.common import note, note_over, note_text
from orchestrator.controller import loop
from orchestrator.controller.run import Run
from orchestrator.controller.status_rows import recorded
from orchestrator.domain.states import State
from orchestrator.errors import QvlError
from orchestrator.operations.status import refresh

POLL_S = 0.5
CONTROLLER_S = 5.0
"""How often it is seen to that somebody looks after the run."""
PARTS = 20
"""Outside a terminal, progress is worth a line after each of so many parts of the run."""
END_CODES = {State.SUCCEEDED: 0, State.FAILED: 1, State.CANCELLED: 1, State.HELD: 73}
INTERRUPTED = 130


def follow_to_end(run: Run) -> int:
    """Watch until the run is settled; its exit code. Ctrl-C ends the watching only."""
    row = watch(run)
    if row is None:
        note_text(
            f"no longer watching; the run goes on\n"
            f"  watch again    qvl-orchestrate status --watch {run.run_id}\n"
            f"  stop for good  qvl-orchestrate cancel {run.run_id}"
        )
        return INTERRUPTED
    for text in (row.get("message"), row["next"] and f"next: {row['next']}"):
        if text:
            note(text)
    return END_CODES[State(row["state"])]


def watch(run: Run, step: int | None = None) -> dict[str, Any] | None:
    """Show progress until the run is settled or `step` is done; the last row, None after Ctrl-C."""
    screen = _Screen()
    try:
        return _follow(run, screen, step)
    except KeyboardInterrupt:
        return None
    finally:
        screen.end()


def progress_line(row: dict[str, Any]) -> str:
    """State, attempt, step and loss of a status row in one line."""
    parts = [row["state"], f"attempt {row['attempt']}"]
    if row["total_steps"]:
        parts.append(f"step {row['step']}/{row['total_steps']}")
    if row["loss"] is not None:
        parts.append(f"loss {row['loss']:.4f}")
    return "  ".join(parts)


def _follow(run: Run, screen: _Screen, step: int | None) -> dict[str, Any]:
    """The row at `step`, or the last one, once a controller has recorded it (and has no more
    business there).
    """
    looked = run.clock.monotonic()
    while True:
        entry = run.registry.find(run.run_id)
        if entry.row is not None and recorded(entry.row) in END_CODES:
            screen.show(entry.row)
            return entry.row
        seen = refresh(run.registry, run.clock, entry)
        screen.show(seen.row, seen.fault)
        if step is not None and seen.row["step"] >= step:
            return seen.row
        if run.clock.monotonic() - looked >= CONTROLLER_S:
            looked = run.clock.monotonic()
            _ensure_controller(run)
        run.clock.sleep(POLL_S)


def leave_controller(run: Run) -> bool:
    """See to it that somebody looks after a run that was just submitted; say who, if not plain.

    False if nobody does yet.
    """
    try:
        said = loop.leave_controller(run, loop.PATIENCE_S)
        attended = loop.is_attended(run)
    except QvlError as fault:
        said, attended = f"no controller could be started: {fault}", False
    if said:
        note(said)
    return attended


def _ensure_controller(run: Run) -> None:
    try:
        loop.look_after(run)
    except QvlError as fault:
        note(f"cannot look after the run now: {fault.message}")


class _Screen:
    """One line that changes in a terminal; elsewhere a line for each change worth a line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last: object = None

    def show(self, row: dict[str, Any], fault: str | None = None) -> None:
        line = progress_line(row) + (f"  ({fault})" if fault else "")
        part = PARTS * row["step"] // (row["total_steps"] or 1)
        mark = line if self._terminal else (row["state"], row["attempt"], part, fault)
        if mark == self._last:
            return
        self._last = mark
        if self._terminal:
            note_over(line)
        else:
            note(line)

    def end(self) -> None:
        if self._terminal and self._last is not None:
            note("")
