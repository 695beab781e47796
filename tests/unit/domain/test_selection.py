"""Which checkpoints are tried, and which may be given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Commit, LogRecord
from orchestrator.contract.spec import StartFrom, StartKind
from orchestrator.domain.selection import best, candidates, to_retire


def commits(*seqs: int) -> list[LogRecord]:
    return [LogRecord(seq=s, kind="commit", attempt=1, token="", prev="", time="") for s in seqs]


def seqs(records: object) -> list[int]:
    return [r.seq for r in records]  # type: ignore[attr-defined]


def test_latest_is_by_log_order() -> None:
    found = candidates(commits(2, 5, 9), StartFrom())
    assert seqs(found.commits) == [9, 5, 2]
    assert found.explicit is None


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "scratch"])
def test_an_explicit_start_counts_until_there_is_progress_from_it(kind: StartKind) -> None:
    start = StartFrom(kind=kind, ref="x", after_seq=6)
    found = candidates(commits(2, 5), start)
    assert (found.commits, found.explicit) == ((), start)
    found = candidates(commits(2, 5, 9, 12), start)
    assert (seqs(found.commits), found.explicit) == ([12, 9], start)


ROWS = [
    ("nothing verified", (2, 4, 6), 1, (), [], []),
    ("the newest verified", (2, 4, 6), 1, (6,), [], [2, 4]),
    ("two kept", (2, 4, 6), 2, (6,), [], [2]),
    ("all kept", (2, 4, 6), 3, (6,), [], []),
    ("keep none still keeps one", (2, 4, 6), 0, (6,), [], [2, 4]),
    ("only an older one verified", (2, 4, 6), 1, (4,), [], [2]),
    ("only the oldest verified", (2, 4, 6), 1, (2,), [], []),
    ("a pinned one stays", (2, 4, 6), 1, (6,), [2], [4]),
    ("what was verified is gone", (2, 4), 1, (9,), [], []),
    ("nothing there", (), 2, (), [], []),
]


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_retention(
    row: tuple[str, tuple[int, ...], int, tuple[int, ...], list[int], list[int]],
) -> None:
    _, live, keep, verified, pinned, expected = row
    found = to_retire(commits(*live), keep_last=keep, verified=verified, pinned=pinned)
    assert seqs(found) == expected


def test_the_best_by_evaluation() -> None:
    live = [at_step(seq, step) for seq, step in ((2, 10), (4, 20), (6, 30), (8, 20))]
    losses = {10: 0.5, 20: 0.2, 30: 0.2}
    assert best(live, losses, 0) == frozenset()
    assert best(live, losses, 1) == {8}, "of equal ones the first step, of one step the newest"
    assert best(live, losses, 3) == {2, 6, 8}
    assert best(live, {99: 0.1}, 3) == frozenset(), "evaluated, and not there"


def at_step(seq: int, step: int) -> LogRecord:
    body = Commit(
        directory="d", step=step, manifest_hash="", trigger="", size_bytes=1, adapter_sha256=""
    )
    (record,) = commits(seq)
    return replace(record, body=to_json(body))
