"""`status`: the registry at once, live runs refreshed by one small read each. Changes nothing
on a backend.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock, iso
from orchestrator.controller import lease, rows
from orchestrator.controller.observe import backend_phase, observe
from orchestrator.controller.removal import directory_gone
from orchestrator.controller.run import Run, open_entry
from orchestrator.domain.decide import decide
from orchestrator.domain.states import FINAL, State, state_of
from orchestrator.errors import QvlError
from orchestrator.helper.history import read_summary
from orchestrator.registry.store import Registry, RunEntry
from orchestrator.storage.opening import is_remote

FRESH_S = 30.0
"""An entry this young is believed, unless asking is free."""
WORKERS = 16
BUDGET_S = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A status row (internal fields included) and when it was seen."""

    row: dict[str, Any]
    seen_at: float
    fault: str | None = None
    """Why the row could not be refreshed."""


def snapshot(registry: Registry, clock: Clock, entries: Iterable[RunEntry]) -> list[Snapshot]:
    """One snapshot an entry, in order. Never raises for a single run."""
    chosen = list(entries)
    asked = [e for e in chosen if not e.final or not is_remote(e.uri)]
    if not asked:
        return [_stored(e) for e in chosen]
    futures = _refresh_all(registry, clock, asked)
    end = clock.monotonic() + BUDGET_S
    found = []
    for entry in chosen:
        future = futures.get(entry.run_id)
        if future is None:
            found.append(_stored(entry))
            continue
        try:
            found.append(future.result(timeout=max(0.0, end - clock.monotonic())))
        except TimeoutError:
            late = None if entry.final else "the storage does not answer within 2 s"
            found.append(_stored(entry, late))
    return found


def _refresh_all(
    registry: Registry, clock: Clock, asked: Sequence[RunEntry]
) -> dict[str, Future[Snapshot]]:
    """Refresh in daemon threads: one that hangs in a dead file system must not hold us back
    at exit, as those of a ThreadPoolExecutor would. Those that have ended come last.
    """
    futures: dict[str, Future[Snapshot]] = {e.run_id: Future() for e in asked}
    waiting: queue.SimpleQueue[RunEntry] = queue.SimpleQueue()
    for entry in sorted(asked, key=lambda e: e.final):
        waiting.put(entry)

    def work() -> None:
        while True:
            try:
                entry = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                seen = refresh(registry, clock, entry)
            except Exception as fault:  # noqa: BLE001 - one run must not hide all others
                seen = _stored(entry, f"internal error: {fault!r}")
            futures[entry.run_id].set_result(seen)

    for _ in range(min(WORKERS, len(asked))):
        threading.Thread(target=work, name="status", daemon=True).start()
    return futures


def _stored(entry: RunEntry, fault: str | None = None) -> Snapshot:
    return Snapshot(entry.row or rows.blank_row(entry), entry.seen_at, fault)


def refresh(registry: Registry, clock: Clock, entry: RunEntry) -> Snapshot:
    """The row of one run, read as cheaply as it allows; one that has ended is not read again."""
    if directory_gone(entry.uri):
        row = rows.gone_row(entry.row or rows.blank_row(entry), entry.uri)
        return Snapshot(row, entry.seen_at, _gone_words(entry))
    if entry.final:
        return _stored(entry)
    try:
        run = open_entry(registry, entry, clock)
        free = run.backend.capabilities.free_to_ask
        if not free and clock.now() - entry.seen_at < FRESH_S:
            return _stored(entry)
        return Snapshot(_row(run, entry, free=free), clock.now())
    except QvlError as fault:
        return _stored(entry, fault.message)


def _gone_words(entry: RunEntry) -> str:
    return f"{entry.uri} is gone; `qvl-orchestrate rm {entry.run_id}` forgets the run"


def remember(registry: Registry, clock: Clock, entry: RunEntry) -> None:
    """Store how a run looks that this registry has not seen yet; one that is away stays blank."""
    try:
        row = _full(open_entry(registry, entry, clock))
    except QvlError:
        return
    final = row["state"] in FINAL
    registry.saw(entry.run_id, row, final=final, at=clock.now())


def _row(run: Run, entry: RunEntry, *, free: bool) -> dict[str, Any]:
    row = entry.row or rows.blank_row(entry)
    job = rows.job_of(row)
    phase = backend_phase(run, job) if free and job else None
    if row["state"] == State.HELD and phase != "running":
        return row
    summary = read_summary(run.storage)
    if phase == "running" and summary is not None and row["state"] != State.CANCELLING:
        state = _live_state(row["state"], summary.phase)
        return rows.with_summary({**row, "state": state, "next": None}, summary)
    if free or row.get("backend_job_id") is None:
        return _still_waiting(row, _full(run))
    return _attended(run, row if summary is None else rows.with_summary(row, summary))


def _still_waiting(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What only a controller learns, why a submission was not taken, stays until it is taken."""
    if known["reason"] != rows.FULL or found["backend_job_id"] is not None:
        return found
    return {**found, **{name: known[name] for name in ("reason", "message")}}


def _live_state(known: str, phase: str) -> str:
    if phase in ("training", "evaluating"):
        return State.RUNNING.value
    if phase == "stopping":
        return State.STOPPING.value
    return known if phase == "ended" else State.STARTING.value


def _full(run: Run) -> dict[str, Any]:
    seen = observe(run)
    decision = decide(seen.facts)
    state = state_of(seen.facts, decision, seen.summary.phase if seen.summary else None)
    return _attended(run, rows.full_row(run, seen, decision, state))


def _attended(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """The row, with a word in it if nobody looks after the run."""
    record = lease.newest(run.storage)
    settled = row["state"] in FINAL or row["state"] == State.HELD
    if settled or lease.is_live(record, run.clock.now()):
        return row
    left = record.renewed_at if record and record.renewed_at else iso(run.entry.created_at)
    since = f"no controller since {left[11:16]} UTC"
    return {**row, "next": f"{since}: qvl-orchestrate controller once"}
