"""The verdict of an attempt: each row of the design's "Exit codes" paragraph."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.contract.codes import CRASH
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import (
    Commit,
    LogRecord,
    RecordKind,
    SlotRecord,
    StopRecord,
    VerdictRecord,
)
from orchestrator.domain.verdict import Verdict, attempt_verdict


def record(kind: RecordKind, attempt: int, trigger: str = "interval") -> LogRecord:
    body: Any = {}
    if kind == "commit":
        body = to_json(
            Commit(
                directory="d",
                step=1,
                manifest_hash="h",
                trigger=trigger,
                size_bytes=1,
                adapter_sha256="s",
            )
        )
    return LogRecord(seq=1, kind=kind, attempt=attempt, token="", prev="", time="", body=body)


def slot(number: int) -> SlotRecord:
    return SlotRecord(
        attempt=1, slot=number, token="", host="", address="", port=0, pid=0, backend_id=""
    )


def said(
    number: int, code: int, reason: str = "r", message: str = "", notice: str | None = None
) -> VerdictRecord:
    return VerdictRecord(
        attempt=1, slot=number, code=code, reason=reason, message=message, notice=notice
    )


STOP = StopRecord(attempt=1, slot=0, index=1, reason="SIGTERM", seconds_left=60.0)
FENCE1, FENCE2 = record("fence", 1), record("fence", 2)
SAVED = record("commit", 1, "notice")
TWO = [slot(0), slot(1)]

Row = tuple[str, list[LogRecord], list[SlotRecord], list[StopRecord], list[VerdictRecord], Verdict]
ROWS: list[Row] = [
    ("done", [FENCE1, SAVED, record("done", 1)], TWO, [STOP], [said(0, 1)], Verdict(0, "done")),
    ("done, processes killed", [FENCE1, record("done", 1)], TWO, [], [], Verdict(0, "done")),
    (
        "commit at a notice, whatever the processes returned",
        [FENCE1, SAVED],
        TWO,
        [STOP],
        [said(0, 1), said(1, -9)],
        Verdict(75, "preempted", "SIGTERM"),
    ),
    (
        "commit at a notice, then killed",
        [FENCE1, SAVED],
        TWO,
        [STOP],
        [],
        Verdict(75, "preempted", "SIGTERM"),
    ),
    (
        "commit at a notice, then fenced",
        [FENCE1, SAVED, FENCE2],
        TWO,
        [STOP],
        [said(0, 79)],
        Verdict(75, "preempted", "SIGTERM"),
    ),
    (
        "fenced while alive",
        [FENCE1, FENCE2],
        TWO,
        [],
        [said(0, 79), said(1, 1)],
        Verdict(79, "fenced", "replaced by attempt 2"),
    ),
    (
        "fenced while alive, after a notice",
        [FENCE1, FENCE2],
        TWO,
        [STOP],
        [said(0, 79)],
        Verdict(79, "fenced", "replaced by attempt 2"),
    ),
    (
        "a notice and no commit",
        [FENCE1],
        TWO,
        [STOP],
        [said(0, 76), said(1, 76)],
        Verdict(76, "preempted", "SIGTERM"),
    ),
    (
        "errors after a notice are no crash",
        [FENCE1],
        TWO,
        [STOP],
        [said(0, 1), said(1, 77)],
        Verdict(76, "preempted", "SIGTERM"),
    ),
    ("a notice, then killed", [FENCE1], TWO, [STOP], [], Verdict(76, "preempted", "SIGTERM")),
    (
        "a notice whose stop request could not be stored",
        [FENCE1],
        [slot(0)],
        [],
        [said(0, 76, notice="SIGUSR1")],
        Verdict(76, "preempted", "SIGUSR1"),
    ),
    (
        "only interval commits before the notice",
        [FENCE1, record("commit", 1)],
        TWO,
        [STOP],
        [],
        Verdict(76, "preempted", "SIGTERM"),
    ),
    (
        "a commit at a notice by another attempt",
        [record("fence", 2), record("commit", 2, "notice")],
        [slot(0)],
        [],
        [said(0, 1, "crash", "boom")],
        Verdict(CRASH, "crash", "boom"),
    ),
    (
        "out of memory",
        [FENCE1],
        TWO,
        [],
        [said(0, 1, "crash"), said(1, 77, "oom", "rank 3")],
        Verdict(77, "oom", "rank 3"),
    ),
    (
        "out of memory before refused",
        [FENCE1],
        TWO,
        [],
        [said(0, 78, "user"), said(1, 77, "oom")],
        Verdict(77, "oom"),
    ),
    (
        "refused",
        [FENCE1],
        TWO,
        [],
        [said(0, 78, "contract", "text"), said(1, 1)],
        Verdict(78, "contract", "text"),
    ),
    (
        "crash",
        [FENCE1],
        TWO,
        [],
        [said(0, 0), said(1, 1, "crash", "boom")],
        Verdict(CRASH, "crash", "boom"),
    ),
    (
        "any other number is a crash",
        [FENCE1],
        [slot(0)],
        [],
        [said(0, 137, "killed", "k")],
        Verdict(CRASH, "killed", "k"),
    ),
    (
        "a slot without a verdict was killed",
        [FENCE1],
        TWO,
        [],
        [said(0, 0)],
        Verdict(CRASH, "killed", "no verdict from node(s): 1"),
    ),
    (
        "no slot at all",
        [FENCE1],
        [],
        [],
        [],
        Verdict(CRASH, "killed", "no verdict from node(s): none claimed"),
    ),
    (
        "ended well and yet not done",
        [FENCE1],
        TWO,
        [],
        [said(0, 0), said(1, 0)],
        Verdict(CRASH, "no-done", "the processes ended without finishing the run"),
    ),
    (
        "79 without any fence is not believed",
        [FENCE1],
        [slot(0)],
        [],
        [said(0, 79)],
        Verdict(CRASH, "no-done", "the processes ended without finishing the run"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_rows(row: Row) -> None:
    _, records, slots, stops, verdicts, expected = row
    assert attempt_verdict(1, records, slots, stops, verdicts) == expected


LATER = [[FENCE2], [FENCE2, record("commit", 2, "notice")], [FENCE2, record("done", 2)]]


@pytest.mark.parametrize("later", LATER, ids=["fence", "commit", "done"])
@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_what_later_attempts_do_never_changes_it(row: Row, later: list[LogRecord]) -> None:
    """Budgets count old attempts: a crash must not turn into "fenced" once it was followed."""
    _, records, slots, stops, verdicts, expected = row
    if any(v.code == 79 for v in verdicts):
        return
    assert attempt_verdict(1, [*records, *later], slots, stops, verdicts) == expected


def test_several_reasons_are_named_once() -> None:
    stops = [STOP, StopRecord(attempt=1, slot=1, index=1, reason="SIGUSR1", seconds_left=1.0)]
    found = attempt_verdict(1, [FENCE1], TWO, stops, [said(0, 76, notice="SIGTERM")])
    assert found.message == "SIGTERM, SIGUSR1"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("stopped", Verdict(76, "preempted", "it left no verdict")),
        ("preempted", Verdict(76, "preempted", "it left no verdict")),
        ("storage", Verdict(74, "storage", "the run storage took no writes")),
        ("failed", Verdict(CRASH, "killed", "no verdict from node(s): 0, 1")),
        ("", Verdict(CRASH, "killed", "no verdict from node(s): 0, 1")),
    ],
)
def test_what_the_scheduler_saw_counts_where_the_storage_took_no_verdict(
    ending: Any, expected: Verdict
) -> None:
    assert attempt_verdict(1, [FENCE1], TWO, [], [], ending) == expected
    told = attempt_verdict(1, [FENCE1], TWO, [], [said(0, 77, "oom")], ending)
    assert told.code == 77, "a verdict that was stored counts before the scheduler's word"


def test_a_storage_that_takes_no_writes_counts_before_the_crashes_that_follow() -> None:
    found = attempt_verdict(1, [FENCE1], TWO, [], [said(0, 1), said(1, 74, "storage", "no room")])
    assert found == Verdict(74, "storage", "no room")
    assert not found.preempted
