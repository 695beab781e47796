"""`status`: the registry at once, live runs refreshed by few small reads each. Changes nothing
on a backend.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from orchestrator.clock import Clock, iso, parse_iso
from orchestrator.contract import layout
from orchestrator.contract.records import LeaseRecord
from orchestrator.contract.summary import RunSummary
from orchestrator.controller import lease, status_rows
from orchestrator.controller.backoff import FAULTS, as_error
from orchestrator.controller.observe import backend_phase, observe
from orchestrator.controller.run import Run, open_entry
from orchestrator.domain.decide import decide
from orchestrator.domain.states import FINAL, State, state_of
from orchestrator.errors import RecordDamaged
from orchestrator.operations.removal import directory_gone
from orchestrator.registry.store import Registry, RunEntry
from orchestrator.run_directory.records import decode
from orchestrator.storage.opening import is_remote
from orchestrator.storage.parallel import get_all, together

FRESH_S = 30.0
"""An entry this young is believed, unless asking is free."""
WORKERS = 16
BUDGET_S = 2.0
JUST_READ_S = 5.0
"""The same of one that no controller has written: nobody else keeps it up to date."""
STALE_S = 60.0
"""What was last seen longer ago is worth waiting for:"""
STALE_BUDGET_S = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A status row (internal fields included) and when it was seen."""

    row: dict[str, Any]
    seen_at: float
    """Seconds since the epoch; 0 = never."""
    fault: str | None = None
    """Why the row could not be refreshed."""
    final: bool = False
    """The run has ended, and its controller has recorded it."""


Looked: TypeAlias = tuple[Snapshot, Callable[[], Snapshot] | None]
"""What a first look has found, and the dearer part of the refresh, if there is one."""


def snapshot(registry: Registry, clock: Clock, entries: Iterable[RunEntry]) -> list[Snapshot]:
    """One snapshot an entry, in order. Never raises for a single run. A good one is remembered."""
    chosen = list(entries)
    asked = [e for e in chosen if not e.final or not is_remote(e.uri)]
    pending = {e.run_id: _Pending(e) for e in sorted(asked, key=lambda e: e.final)}
    if not pending:
        return [_stored(e) for e in chosen]
    begun, wall = clock.monotonic(), clock.now()
    _start(registry, clock, list(pending.values()))
    found = {
        run_id: one.wait(begun + BUDGET_S, begun + _patience_s(one.entry, wall), clock)
        for run_id, one in pending.items()
    }
    _keep(registry, pending, found)
    return [found.get(e.run_id) or _stored(e) for e in chosen]


def _patience_s(entry: RunEntry, now: float) -> float:
    known = entry.final or now - entry.seen_at < STALE_S
    return BUDGET_S if known else STALE_BUDGET_S


class _Pending:
    """A run being refreshed: a first look, which is quick, and then all of it."""

    def __init__(self, entry: RunEntry) -> None:
        self.entry = entry
        self.first: Future[Snapshot] = Future()
        self.whole: Future[Snapshot] = Future()

    def wait(self, end: float, end_of_first: float, clock: Clock) -> Snapshot:
        """The best that is there in time."""
        for future, until in ((self.whole, end), (self.first, end_of_first)):
            try:
                found = future.result(timeout=max(0.0, until - clock.monotonic()))
            except TimeoutError:
                continue
            return self.whole.result() if self.whole.done() else found
        late = None if self.entry.final else "the storage does not answer in time"
        return _stored(self.entry, late)


def _start(registry: Registry, clock: Clock, pending: Sequence[_Pending]) -> None:
    """Refresh in daemon threads: one that hangs in a dead file system must not hold us back
    at exit, as those of a ThreadPoolExecutor would. All have had a first look before any gets a
    second one.
    """
    tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def look(one: _Pending) -> None:
        seen, rest = _guarded(one.entry, lambda: first_look(registry, clock, one.entry))
        if rest is None:
            one.whole.set_result(seen)
        else:
            tasks.put(lambda: one.whole.set_result(_guarded(one.entry, lambda: (rest(), None))[0]))
        one.first.set_result(seen)

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                tasks.get_nowait()()

    for one in pending:
        tasks.put(partial(look, one))
    for _ in range(min(WORKERS, len(pending))):
        threading.Thread(target=work, name="status", daemon=True).start()


def _guarded(entry: RunEntry, work: Callable[[], Looked]) -> Looked:
    try:
        return work()
    except FAULTS as fault:
        return _stored(entry, as_error(fault).message), None
    except Exception as fault:  # noqa: BLE001 - one run must not hide all others
        return _stored(entry, f"internal error: {fault!r}"), None


def _keep(registry: Registry, pending: dict[str, _Pending], found: dict[str, Snapshot]) -> None:
    """Remember what is news. What only a controller has recorded stays as it left it."""
    news = []
    for run_id, seen in found.items():
        before = pending[run_id].entry
        if seen.fault is None and seen.seen_at > before.seen_at:
            recorded = status_rows.recorded(before.row or {})
            row = {**seen.row, status_rows.RECORDED: recorded, status_rows.READ: True}
            news.append((run_id, row, seen.final, seen.seen_at))
    try:
        registry.refreshed(news)
    except FAULTS:
        # The registry is an index: what it cannot take is read again the next time.
        return


def _stored(entry: RunEntry, fault: str | None = None) -> Snapshot:
    row = entry.row or status_rows.blank_row(entry)
    if fault is not None and not entry.seen_at:
        row = {**row, "state": State.UNKNOWN.value}
    return Snapshot(row, entry.seen_at, fault, entry.final)


def refresh(registry: Registry, clock: Clock, entry: RunEntry) -> Snapshot:
    """The row of one run, read as cheaply as it allows."""
    try:
        seen, rest = first_look(registry, clock, entry)
        return seen if rest is None else rest()
    except FAULTS as fault:
        return _stored(entry, as_error(fault).message)


def _gone_words(entry: RunEntry) -> str:
    return f"{entry.uri} is gone; `qvl-orchestrate rm {entry.run_id}` forgets the run"


def remember(registry: Registry, clock: Clock, entry: RunEntry) -> None:
    """Store how a run looks that this registry has not seen yet; one that is away stays blank."""
    try:
        row = _full(open_entry(registry, entry, clock))
    except FAULTS:
        return
    final = row["state"] in FINAL
    registry.saw(entry.run_id, row, final=final, at=clock.now())


def first_look(registry: Registry, clock: Clock, entry: RunEntry) -> Looked:
    """What a few reads at once tell of a run, and what tells the rest, if that is worth it; one
    that has ended is not read again.
    """
    if directory_gone(entry.uri):
        row = status_rows.gone_row(entry.row or status_rows.blank_row(entry), entry.uri)
        return Snapshot(row, entry.seen_at, _gone_words(entry), entry.final), None
    if entry.final:
        return _stored(entry), None
    run = open_entry(registry, entry, clock)
    free = run.backend.capabilities.free_to_ask
    now = clock.now()
    known = entry.row or status_rows.blank_row(entry)
    fresh_s = JUST_READ_S if known.get(status_rows.READ) else FRESH_S
    if not free and now - entry.seen_at < fresh_s:
        return _stored(entry), None
    job = status_rows.job_of(known)
    phase = backend_phase(run, job) if free and job else None
    if free and known["state"] == State.HELD and phase != "running":
        return Snapshot(known, now), None
    look = _Look.of(run)
    if phase == "running" and look.summary is not None and known["state"] != State.CANCELLING:
        state = _live_state(known["state"], look.summary.phase)
        row = status_rows.with_summary({**known, "state": state, "next": None}, look.summary)
        row = status_rows.with_news(row, look.summary, run.storage, now)
        return Snapshot(look.attended(run, row), now), None
    row, fault = look.told(known, entry.seen_at)
    if row["state"] == State.RUNNING and look.summary is not None:
        row = status_rows.with_news(row, look.summary, run.storage, now)
    return Snapshot(look.attended(run, row), now, fault), lambda: _whole(run, known, now)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one round of small reads finds."""

    summary: RunSummary | None
    done: bool
    tombstone: bool
    holder: LeaseRecord | None

    @classmethod
    def of(cls, run: Run) -> _Look:
        paths = (layout.SUMMARY, layout.DONE, layout.TOMBSTONE)
        calls: list[Callable[[], Any]] = [
            lambda: get_all(run.storage, paths),
            lambda: lease.newest(run.storage),
        ]
        (summary, done, tombstone), holder = together(run.storage, calls)
        return cls(_summary(summary), done is not None, tombstone is not None, holder)

    def told(self, known: dict[str, Any], seen_at: float) -> tuple[dict[str, Any], str | None]:
        """The row as far as this tells it, and what is missing."""
        if self.summary is None:
            return known, "its job was not asked in time"
        row, phase = {**known, "next": None}, self.summary.phase
        newer = bool(self.summary.time) and parse_iso(self.summary.time) > seen_at
        missing = None
        if self.done:
            row |= {"state": State.SUCCEEDED.value, "reason": None, "message": None}
        elif self.tombstone:
            row["state"] = State.CANCELLING.value
        elif phase != "ended" and (newer or known["state"] not in (State.HELD, *FINAL)):
            row["state"] = _live_state(known["state"], phase)
        else:
            row, missing = known, "its job was not asked in time"
        return status_rows.with_summary(row, self.summary), missing

    def attended(self, run: Run, row: dict[str, Any]) -> dict[str, Any]:
        return _attended(run, row, self.holder)


def _summary(data: bytes | None) -> RunSummary | None:
    try:
        return None if data is None else decode(RunSummary, data, layout.SUMMARY)
    except RecordDamaged:
        return None


def _whole(run: Run, known: dict[str, Any], now: float) -> Snapshot:
    row = _still_waiting(known, _full(run))
    if row["state"] not in FINAL:
        return Snapshot(row, now)
    holder = lease.newest(run.storage)
    return Snapshot(row, now, final=holder is not None and holder.released)


def _still_waiting(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What only a controller learns, why a submission was not taken, stays until it is taken."""
    kept = {name: known[name] for name in ("reason", "message")}
    if known["reason"] == status_rows.FULL and found["backend_job_id"] is None:
        return {**found, **kept}
    same = (known["state"], known["attempt"]) == (found["state"], found["attempt"])
    if known.get("storage_wait") and same:
        return {**found, **kept, "next": known["next"]}
    return found


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
    row = status_rows.full_row(run, seen, decision, state)
    return _attended(run, row, lease.newest(run.storage))


def _attended(run: Run, row: dict[str, Any], record: LeaseRecord | None) -> dict[str, Any]:
    """The row, with a word in it if nobody looks after the run.

    record: the newest of its lease
    """
    settled = row["state"] in FINAL or row["state"] == State.HELD
    if settled:
        return row
    if lease.is_live(record, run.clock.now()):
        return {**row, "attended": True}
    left = record.renewed_at if record and record.renewed_at else iso(run.entry.created_at)
    since = f"no controller since {left[11:16]} UTC"
    return {**row, "attended": False, "next": f"{since}: qvl-orchestrate controller once"}
