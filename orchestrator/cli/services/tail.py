"""Reading on: streams of lines as they grow, until a run is settled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.contract.event import Event
    from orchestrator.controller.run import Run
    from orchestrator.storage.protocol import Storage

FOLLOW_S = 0.5


class Tail:
    """Streams of lines, each read on from where the last look at it ended."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._at: dict[str, tuple[int, int]] = {}
        """Number of the segment, and of its lines that were taken, by folder."""

    def streams(self, parent: str) -> list[str]:
        """The folders of the streams below `parent`."""
        found = self._storage.list(parent, deep=True)
        return sorted({e.path.rpartition("/")[0] + "/" for e in found})

    def new(self, folder: str) -> Iterator[bytes]:
        """Lines of one stream that were not taken before."""
        from orchestrator.run_directory.segments import read_lines

        segment, skip = self._at.get(folder, (0, 0))
        current, count = segment, 0
        for number, line in read_lines(self._storage, folder, start=segment):
            count = count + 1 if number == current else 1
            current = number
            if number > segment or count > skip:
                self._at[folder] = (current, count)
                yield line


def until_settled(run: Run) -> Iterator[None]:
    """Yields every half second, and once more after the last word of a run that has ended."""
    while True:
        settled = is_settled(run)
        yield
        sys.stdout.flush()
        if settled:
            return
        run.clock.sleep(FOLLOW_S)


def is_settled(run: Run) -> bool:
    """True if nothing will change without a person, and no job is there that could speak."""
    from orchestrator.controller.observe import backend_phase
    from orchestrator.controller.status_rows import job_of
    from orchestrator.domain.states import FINAL, State
    from orchestrator.operations.status import refresh

    row = refresh(run.registry, run.clock, run.registry.find(run.run_id)).row
    if row["state"] not in FINAL and row["state"] != State.HELD:
        return False
    return backend_phase(run, job_of(row)) not in ("pending", "running")


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
