"""A run's log made anew from what is left of it and from what its attempts left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Commit, LogRecord, RecordKind, Retire

REBUILT = "rebuilt"
"""In the body of a fence: attempts up to this one tell nothing of the log any more, which was
made anew from what they left."""
LOST = "lost"
"""In the body of a fence of attempt 0, which fences nobody: stands where nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCommit:
    """A checkpoint that lies in the run directory and that no record names."""

    attempt: int
    body: Commit
    seq: int | None = None
    """Its number in the log, where another record has kept it."""
    fault: str = ""
    """Why it cannot be trusted: then it is marked bad, and its files stay."""


def rebuilt_up_to(records: Sequence[LogRecord]) -> int:
    """Highest attempt that a log made anew knows only by what it left; 0 if it never was."""
    told = (r.body.get(REBUILT) for r in records if r.kind == "fence")
    return max((n for n in told if isinstance(n, int)), default=0)


def rebuild(
    survivors: Sequence[LogRecord],
    attempts: Mapping[int, int],
    commits: Sequence[FoundCommit],
    *,
    done: LogRecord | None = None,
    length: int = 0,
    time: str = "",
) -> list[LogRecord]:
    """All records of the new log, without gaps, `prev` left empty.

    Records that are right in themselves keep their numbers, which others refer to; what was
    lost takes the numbers that are free, in the order in which it happened.

    attempts: those that were claimed, and the lowest number that the fence of each can have had
    length: records that the log is known to have had
    """
    new = _Numbers({r.seq: r for r in survivors}, time)
    for found in commits:
        if found.seq is not None:
            new.put("commit", found.attempt, found.body, wanted=found.seq)
    fenced = {r.attempt for r in survivors if r.kind == "fence"}
    for attempt in sorted(attempts):
        new.after(attempts[attempt] - 1)
        if attempt not in fenced:
            new.put("fence", attempt)
        mine = [f for f in commits if f.attempt == attempt and f.seq is None]
        for found in sorted(mine, key=lambda f: f.body.step):
            new.put("commit", attempt, found.body)
    if done is not None and not any(r.kind == "done" for r in survivors):
        new.put("done", done.attempt, body=done.body, wanted=done.seq)
    new.fill(length)
    seqs = {r.commit().directory: r.seq for r in new.records() if r.kind == "commit"}
    newest = max(attempts, default=0)
    for found in commits:
        if found.fault:
            where = found.body.directory
            bad = Retire(commit_seq=seqs[where], directory=where, reason=found.fault)
            new.put("bad", newest, bad)
    new.after(new.last)
    new.put("fence", newest, body={REBUILT: newest})
    return new.records()


class _Numbers:
    def __init__(self, taken: dict[int, LogRecord], time: str) -> None:
        self._taken = taken
        self._time = time
        self._at = 0

    @property
    def last(self) -> int:
        return max(self._taken, default=0)

    def records(self) -> list[LogRecord]:
        return [self._taken[seq] for seq in sorted(self._taken)]

    def after(self, seq: int) -> None:
        """What comes next stands behind this number."""
        self._at = max(self._at, seq)

    def put(
        self,
        kind: RecordKind,
        attempt: int,
        value: Commit | Retire | None = None,
        *,
        body: Mapping[str, object] | None = None,
        wanted: int | None = None,
    ) -> None:
        """Under the number that is wanted if it is free, else the next free one."""
        if wanted is None or wanted in self._taken:
            self._at += 1
            while self._at in self._taken:
                self._at += 1
            wanted = self._at
        self._taken[wanted] = LogRecord(
            seq=wanted,
            kind=kind,
            attempt=attempt,
            token=f"rebuilt-{wanted}",
            prev="",
            time=self._time,
            body=to_json(value) if value is not None else dict(body or {}),
        )

    def fill(self, length: int) -> None:
        """No number up to `length`, or before the last, stays free."""
        for seq in range(1, max(length, self.last) + 1):
            if seq not in self._taken:
                self.put("fence", 0, body={LOST: True}, wanted=seq)
        self.after(self.last)
