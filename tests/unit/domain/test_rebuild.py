"""A log made anew: without gaps, what survived under its own number, nothing believed twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Commit, LogRecord, RecordKind
from orchestrator.domain.rebuild import LOST, FoundCommit, rebuild, rebuilt_up_to


def body(attempt: int, step: int) -> Commit:
    return Commit(
        directory=f"attempts/{attempt:06d}/checkpoints/checkpoint-{step}",
        step=step,
        manifest_hash="h",
        trigger="interval",
        size_bytes=1,
        adapter_sha256="a",
    )


def record(seq: int, kind: RecordKind, attempt: int, value: object = None) -> LogRecord:
    return LogRecord(
        seq=seq,
        kind=kind,
        attempt=attempt,
        token=f"t{seq}",
        prev="x",
        time="",
        body=to_json(value) if value is not None else {},
    )


def shape(records: list[LogRecord]) -> list[tuple[int, str, int]]:
    return [(r.seq, r.kind, r.attempt) for r in records]


def test_all_of_the_log_is_lost() -> None:
    found = [FoundCommit(attempt=a, body=body(a, s)) for a, s in [(2, 30), (1, 20), (1, 10)]]
    records = rebuild([], {1: 1, 2: 1}, found)
    assert shape(records) == [
        (1, "fence", 1),
        (2, "commit", 1),
        (3, "commit", 1),
        (4, "fence", 2),
        (5, "commit", 2),
        (6, "fence", 2),
    ]
    assert [r.commit().step for r in records if r.kind == "commit"] == [10, 20, 30]
    assert rebuilt_up_to(records) == 2


def test_what_survived_keeps_its_number_and_its_words() -> None:
    kept = [record(2, "commit", 1, body(1, 10)), record(5, "fence", 2)]
    records = rebuild(kept, {1: 1, 2: 4}, [FoundCommit(attempt=1, body=body(1, 20))])
    assert [r for r in records if r.token.startswith("t")] == kept
    assert shape(records) == [
        (1, "fence", 1),
        (2, "commit", 1),
        (3, "commit", 1),
        (4, "fence", 0),
        (5, "fence", 2),
        (6, "fence", 2),
    ]
    assert records[3].body == {LOST: True}


def test_a_number_that_others_refer_to_is_kept() -> None:
    found = [FoundCommit(attempt=1, body=body(1, 10), seq=7)]
    records = rebuild([], {1: 1, 2: 8}, found, length=9)
    assert {r.seq: r.kind for r in records if r.kind == "commit"} == {7: "commit"}
    assert [r.seq for r in records if r.kind == "fence" and r.attempt == 2] == [8, 10]
    assert [r.seq for r in records] == list(range(1, 11))


def test_what_cannot_be_trusted_is_named_bad() -> None:
    found = [FoundCommit(attempt=1, body=body(1, 10), fault="does not match its hash")]
    records = rebuild([], {1: 1}, found)
    assert shape(records)[-2:] == [(3, "bad", 1), (4, "fence", 1)]
    assert records[2].retire().commit_seq == 2
    assert records[2].retire().reason == "does not match its hash"


def test_the_end_of_the_run_is_kept() -> None:
    done = record(4, "done", 1, {"commit_seq": 3, "step": 20, "adapter_sha256": "a"})
    records = rebuild([], {1: 1}, [FoundCommit(attempt=1, body=body(1, 20), seq=3)], done=done)
    assert shape(records)[2:] == [(3, "commit", 1), (4, "done", 1), (5, "fence", 1)]
    again = rebuild(records, {1: 1}, [], done=done)
    assert [r.kind for r in again].count("done") == 1


@given(st.data())
def test_whatever_is_lost_the_new_log_has_no_gap_and_every_commit_once(data: st.DataObject) -> None:
    whole: list[LogRecord] = []
    for attempt in range(1, data.draw(st.integers(1, 4)) + 1):
        whole.append(record(len(whole) + 1, "fence", attempt))
        for step in range(data.draw(st.integers(0, 3))):
            whole.append(record(len(whole) + 1, "commit", attempt, body(attempt, step)))
    kept = [r for r in whole if data.draw(st.booleans())]
    gone = [r for r in whole if r not in kept and r.kind == "commit"]
    found = [
        FoundCommit(
            attempt=r.attempt, body=r.commit(), seq=r.seq if data.draw(st.booleans()) else None
        )
        for r in gone
    ]
    fences = {
        r.attempt: r.seq if data.draw(st.booleans()) else 1 for r in whole if r.kind == "fence"
    }
    records = rebuild(kept, fences, found, length=len(whole))
    assert [r.seq for r in records] == list(range(1, len(records) + 1))
    assert all(k in records for k in kept)
    commits = sorted(r.commit().directory for r in records if r.kind == "commit")
    assert commits == sorted(r.commit().directory for r in whole if r.kind == "commit")
    assert {r.attempt for r in records if r.kind == "fence"} - {0} == set(fences)
