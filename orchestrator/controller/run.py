"""One run in the hands of the controller: its registry entry, its storage, its backend."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.backends.base import Backend, load_backend
from orchestrator.clock import Clock, iso
from orchestrator.contract import layout
from orchestrator.contract.event import Event
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import CheckpointError
from orchestrator.registry.store import Registry, RunEntry
from orchestrator.run_directory.attempts import read_claims, read_job, read_submissions
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Created, NotFound, Storage


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that an action on one run needs."""

    entry: RunEntry
    registry: Registry
    storage: Storage
    backend: Backend
    clock: Clock
    log: RunLog = field(init=False, repr=False, compare=False)
    """Keeps what it has read from one pass to the next."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", RunLog(self.storage, self.clock))

    @property
    def run_id(self) -> str:
        return self.entry.run_id

    def event(self, kind: str, data: Mapping[str, Any], *, writer: str = "controller") -> None:
        """Append one event of the run as a whole: one object each, since many may write."""
        folder = layout.run_events(writer)
        taken = (layout.number_of(e.path) for e in self.storage.list(folder))
        seq = max((n for n in taken if n is not None), default=0) + 1
        while True:
            event = Event(
                time=iso(self.clock.now()), kind=kind, writer=writer, data=dict(data), seq=seq
            )
            line = {**to_json(event), "token": secrets.token_hex(8)}
            path = layout.segment(folder, seq)
            if isinstance(self.storage.create(path, canonical(line) + b"\n"), Created):
                return
            seq += 1

    def job(self, path: str | None = None, *, attempt: int | None = None) -> ResolvedJob:
        """A resolved job: the one in force, which the newest submission names, unless a `path` or
        an attempt says otherwise. `resume --job` writes a new one.

        Raises CheckpointError if it is missing, RecordDamaged.
        """
        path = path or self._resolved(attempt)
        try:
            return read_job(self.storage, path)
        except NotFound:
            raise CheckpointError(f"{path} of run {self.run_id} is missing") from None

    def _resolved(self, attempt: int | None) -> str:
        """Where the job of an attempt lies, or of the newest submission."""
        known = {s.number: s.spec.resolved for s in read_submissions(self.storage)}
        number = max(known, default=0)
        for claim in read_claims(self.storage) if attempt is not None else ():
            if claim.attempt == attempt:
                number = claim.submission
        return known.get(number, layout.RESOLVED)


def open_run(registry: Registry, wanted: str, clock: Clock) -> Run:
    """The run of that id, name or beginning of an id. Raises NoSuchRun."""
    return open_entry(registry, registry.find(wanted), clock)


def open_entry(registry: Registry, entry: RunEntry, clock: Clock) -> Run:
    """The run behind a registry entry."""
    backend = load_backend(entry.backend, registry.state_dir)
    return Run(entry, registry, open_storage(entry.uri), backend, clock)
