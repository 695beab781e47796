"""The run's log: fences, lost replies, and every way a record can be damaged."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical, digest, to_json
from orchestrator.contract.records import (
    Commit,
    Done,
    LogRecord,
    RecordKind,
    Retire,
    decode_record,
    encode_record,
)
from orchestrator.errors import LogDamaged, NewerVersion, NotOwner, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import MAX_GAP, LogView, RunLog
from orchestrator.storage import posix as posix_module
from orchestrator.storage.hashing import sha256
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Created, Storage, Taken
from tests.harness.clock import FakeClock
from tests.unit.run_directory import fakes

BODIES: dict[RecordKind, Any] = {
    "fence": {},
    "commit": to_json(
        Commit(
            directory="d",
            step=1,
            manifest_hash="h",
            trigger="interval",
            size_bytes=1,
            adapter_sha256="s",
        )
    ),
    "retire": to_json(Retire(commit_seq=2, directory="d", reason="keep_last")),
    "bad": to_json(Retire(commit_seq=2, directory="d", reason="…")),
    "done": to_json(Done(commit_seq=2, step=1, adapter_sha256="s")),
}


def fill(storage: Storage) -> list[LogRecord]:
    """fence, commit, commit, bad, retire, done by attempt 1."""
    log = RunLog(storage, FakeClock())
    kinds: tuple[RecordKind, ...] = ("fence", "commit", "commit", "bad", "retire", "done")
    return [log.append(kind, 1, BODIES[kind]) for kind in kinds]


def test_what_was_appended_is_read(memory: MemoryStorage) -> None:
    records = fill(memory)
    view = RunLog(memory).read()
    assert list(view.records) == records
    assert [r.seq for r in records] == [1, 2, 3, 4, 5, 6]
    assert (view.last_seq, view.fence(), view.is_done(), view.unreadable) == (6, 1, True, ())
    assert view.records[1].commit().step == 1
    assert view.records[4].retire().reason == "keep_last"
    assert view.done() == records[-1]
    assert view.records[5].done() == Done(commit_seq=2, step=1, adapter_sha256="s")


def test_each_record_carries_the_hash_of_the_one_before(memory: MemoryStorage) -> None:
    fill(memory)
    before = ""
    for seq in range(1, 7):
        data = memory.get(layout.log_record(seq))
        assert json.loads(data)["prev"] == before
        before = sha256(data)


def test_an_empty_log(memory: MemoryStorage) -> None:
    assert RunLog(memory).read() == LogView()
    assert LogView().last_seq == 0


def test_two_writers_take_turns(memory: MemoryStorage) -> None:
    one, two = RunLog(memory), RunLog(memory)
    for _ in range(5):
        one.append("fence", 1)
        two.append("fence", 1)
    assert [r.seq for r in RunLog(memory).read().records] == list(range(1, 11))


def test_a_writer_that_loses_the_race_goes_one_further() -> None:
    class Raced(MemoryStorage):
        rival: RunLog | None = None

        def create(self, path: str, data: bytes) -> Created | Taken:
            if self.rival is not None:
                rival, self.rival = self.rival, None
                rival.append("fence", 1, token="rival")
            return super().create(path, data)

    storage = Raced("memory://raced")
    mine, theirs = RunLog(storage), RunLog(MemoryStorage("memory://raced"))
    storage.rival = theirs
    assert mine.append("commit", 1, BODIES["commit"]).seq == 2
    assert [r.token == "rival" for r in mine.read().records] == [True, False]
    MemoryStorage._spaces.pop("memory://raced")


def test_a_fence_that_wins_the_race_makes_the_writer_not_owner() -> None:
    """The older attempt read the log, was paused before its commit, and goes on."""

    class Paused(MemoryStorage):
        rival: RunLog | None = None

        def create(self, path: str, data: bytes) -> Created | Taken:
            if self.rival is not None:
                rival, self.rival = self.rival, None
                rival.append("fence", 2)
            return super().create(path, data)

    storage = Paused("memory://paused")
    old, new = RunLog(storage), RunLog(MemoryStorage("memory://paused"))
    old.append("fence", 1)
    storage.rival = new
    with pytest.raises(NotOwner, match="attempt 1 has been replaced by attempt 2"):
        old.append("commit", 1, BODIES["commit"])
    assert [r.kind for r in new.read().records] == ["fence", "fence"]
    MemoryStorage._spaces.pop("memory://paused")


@pytest.mark.parametrize("kind", ["fence", "commit", "retire", "bad", "done"])
def test_two_attempts_at_once_the_older_can_write_nothing(
    memory: MemoryStorage, kind: RecordKind
) -> None:
    old, new = RunLog(memory), RunLog(memory)
    old.append("fence", 1)
    old.append("commit", 1, BODIES["commit"])
    new.append("fence", 2)
    before = fakes.snapshot(memory)
    with pytest.raises(NotOwner, match="attempt 1 has been replaced by attempt 2") as caught:
        old.append(kind, 1, BODIES[kind])
    assert caught.value.exit_code == 79
    assert fakes.snapshot(memory) == before
    assert new.append(kind, 2, BODIES[kind]).seq == 4


def test_a_paused_attempt_with_a_whole_checkpoint_cannot_commit_retire_mark_or_finish(
    posix: PosixStorage,
) -> None:
    old, new = RunLog(posix), RunLog(posix)
    old.append("fence", 1)
    first = fakes.commit(posix, old, 10)
    directory, manifest, digest_ = fakes.write(posix, 20)
    new.append("fence", 2)
    before = fakes.snapshot(posix)
    for act in (
        lambda: checkpoints.commit(old, 1, manifest, directory, digest_),
        lambda: checkpoints.retire(posix, old, 1, first, "keep_last"),
        lambda: checkpoints.mark_bad(old, 1, first, "x"),
        lambda: old.append("done", 1, BODIES["done"]),
    ):
        with pytest.raises(NotOwner):
            act()
    assert fakes.snapshot(posix) == before
    assert checkpoints.verify(posix, checkpoints.live_commits(new.read())[-1]).commit.step == 10


def test_an_older_attempt_cannot_fence_a_newer_one(memory: MemoryStorage) -> None:
    RunLog(memory).append("fence", 5)
    with pytest.raises(NotOwner):
        RunLog(memory).append("fence", 4)


# --- lost replies


def test_a_lost_reply_is_found_by_its_token() -> None:
    storage = fakes.LostReply("memory://lost")
    log = RunLog(storage, FakeClock())
    storage.lose = 1
    with pytest.raises(StorageError):
        log.append("commit", 1, BODIES["commit"], token="t1")
    RunLog(storage).append("fence", 1)
    record = log.append("commit", 1, BODIES["commit"], token="t1")
    assert (record.seq, record.token) == (1, "t1")
    assert [r.kind for r in RunLog(storage).read().records] == ["commit", "fence"]
    MemoryStorage._spaces.pop("memory://lost")


def test_a_lost_reply_is_not_believed_after_a_fence() -> None:
    """It stands, but whoever wrote it has been replaced and must leave."""
    storage = fakes.LostReply("memory://lost2")
    log = RunLog(storage)
    storage.lose = 1
    with pytest.raises(StorageError):
        log.append("commit", 1, BODIES["commit"], token="t1")
    RunLog(storage).append("fence", 2)
    with pytest.raises(NotOwner):
        log.append("commit", 1, BODIES["commit"], token="t1")
    MemoryStorage._spaces.pop("memory://lost2")


def test_without_a_token_every_append_is_a_record_of_its_own(memory: MemoryStorage) -> None:
    log = RunLog(memory, FakeClock())
    assert [log.append("fence", 1).seq for _ in range(3)] == [1, 2, 3]


# --- damage


def refused(storage: Storage, seq: int) -> None:
    """A writer never goes past `seq`, and changes nothing."""
    before = fakes.snapshot(storage)
    with pytest.raises(LogDamaged, match=f"record {seq} of the run's log cannot be read") as caught:
        RunLog(storage).append("fence", 99)
    assert "restore log/" in str(caught.value)
    assert caught.value.exit_code == 73
    assert fakes.snapshot(storage) == before


@pytest.mark.parametrize("seq", [1, 2, 4, 6])
def test_a_flip_of_any_byte_is_seen(memory: MemoryStorage, seq: int) -> None:
    records = fill(memory)
    path = layout.log_record(seq)
    good = memory.get(path)
    for position in range(len(good)):
        for bit in (0x01, 0x20, 0x80):
            bad = bytearray(good)
            bad[position] ^= bit
            memory.put(path, bytes(bad))
            view = RunLog(memory).read()
            assert seq in view.unreadable, (position, bit)
            assert all(r in records for r in view.records)
            assert {r.seq for r in view.records} | set(view.unreadable) == set(range(1, 7))
    refused(memory, view.unreadable[-1])


@pytest.mark.parametrize("seq", [1, 3, 6])
def test_a_truncation_to_any_length_is_seen(memory: MemoryStorage, seq: int) -> None:
    fill(memory)
    path = layout.log_record(seq)
    good = memory.get(path)
    for length in range(len(good)):
        memory.put(path, good[:length])
        assert RunLog(memory).read().unreadable == (seq,)
    refused(memory, seq)


def test_extra_bytes_are_seen(memory: MemoryStorage) -> None:
    fill(memory)
    path = layout.log_record(2)
    memory.put(path, memory.get(path) + b"x")
    assert RunLog(memory).read().unreadable == (2,)


@pytest.mark.parametrize("seq", [1, 2, 5])
def test_a_record_gone_from_the_middle_is_named_and_passed_over(
    memory: MemoryStorage, seq: int
) -> None:
    records = fill(memory)
    memory.delete(layout.log_record(seq))
    view = RunLog(memory).read()
    assert view.unreadable == (seq,)
    assert [r.seq for r in view.records] == [r.seq for r in records if r.seq != seq]
    assert view.last_seq == 6
    refused(memory, seq)


def test_several_records_gone(memory: MemoryStorage) -> None:
    fill(memory)
    for seq in (2, 3, 5):
        memory.delete(layout.log_record(seq))
    view = RunLog(memory).read()
    assert view.unreadable == (2, 3, 5)
    assert [r.seq for r in view.records] == [1, 4, 6]
    refused(memory, 5)


def test_two_records_swapped(memory: MemoryStorage) -> None:
    fill(memory)
    two, three = memory.get(layout.log_record(2)), memory.get(layout.log_record(3))
    memory.put(layout.log_record(2), three)
    memory.put(layout.log_record(3), two)
    assert RunLog(memory).read().unreadable == (2, 3)
    refused(memory, 3)


@pytest.mark.parametrize("seq", [2, 3, 6])
def test_a_record_of_another_run(memory: MemoryStorage, seq: int) -> None:
    """Valid in itself, with the right number: the hash of its predecessor gives it away."""
    fill(memory)
    other = MemoryStorage("memory://other")
    fill(other)
    memory.put(layout.log_record(seq), other.get(layout.log_record(seq)))
    assert RunLog(memory).read().unreadable == (seq,)
    refused(memory, seq)
    MemoryStorage._spaces.pop("memory://other")


def test_a_first_record_of_another_run_is_seen_by_the_second(memory: MemoryStorage) -> None:
    fill(memory)
    other = MemoryStorage("memory://other1")
    fill(other)
    memory.put(layout.log_record(1), other.get(layout.log_record(1)))
    assert RunLog(memory).read().unreadable == (2,)
    refused(memory, 2)
    MemoryStorage._spaces.pop("memory://other1")


def test_damage_that_comes_while_a_writer_lives(memory: MemoryStorage) -> None:
    log = RunLog(memory)
    log.append("fence", 1)
    memory.create(layout.log_record(2), b"half a rec")
    with pytest.raises(LogDamaged):
        log.append("commit", 1, BODIES["commit"])
    assert log.read().unreadable == (2,)


def test_the_end_of_the_log_beyond_a_hole_is_never_a_place_to_write(memory: MemoryStorage) -> None:
    RunLog(memory).append("fence", 1)
    memory.put(layout.log_record(7), b"")
    assert RunLog(memory).read().unreadable == (2, 3, 4, 5, 6, 7)
    refused(memory, 7)


@pytest.mark.parametrize("data", [b"", b"{}", b"stray"])
@pytest.mark.parametrize("seq", [2000, 99_999_999])
def test_a_stray_file_with_a_far_number_costs_nothing(
    memory: MemoryStorage, seq: int, data: bytes
) -> None:
    records = fill(memory)
    memory.put(layout.log_record(seq), data)
    view = RunLog(memory).read()
    assert (list(view.records), view.unreadable) == (records, ())
    assert RunLog(memory).append("fence", 2).seq == 7


def test_a_right_record_behind_a_wide_gap_is_still_evidence(memory: MemoryStorage) -> None:
    fill(memory)
    far = LogRecord(seq=5_000_000, kind="fence", attempt=9, token="t", prev="x", time="")
    memory.put(layout.log_record(far.seq), encode_record(far))
    view = RunLog(memory).read()
    assert view.records[-1] == far
    assert view.unreadable[-1] == far.seq - 1
    assert len(view.unreadable) == MAX_GAP
    with pytest.raises(LogDamaged):
        RunLog(memory).append("fence", 99)


def test_a_record_of_a_newer_version_is_refused_and_not_called_damaged(
    memory: MemoryStorage,
) -> None:
    fill(memory)
    newer = LogRecord(seq=7, kind="fence", attempt=2, token="t", prev="x", time="", schema=2)
    memory.put(layout.log_record(7), encode_record(newer))
    text = "record 7 of the run's log was made by a newer version of qvl-orchestrate .schema 2"
    for act in (lambda: RunLog(memory).read(), lambda: RunLog(memory).append("fence", 9)):
        with pytest.raises(NewerVersion, match=text) as caught:
            act()
        assert caught.value.exit_code == 78


def test_a_record_that_was_only_found_is_made_durable_before_it_is_acknowledged(
    posix: PosixStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first create linked it and failed to sync the folder."""
    log = RunLog(posix)
    log.append("fence", 1)
    synced: list[str] = []
    real = posix_module._fsync_dir

    def failing(folder: Path) -> None:
        synced.append(folder.name)
        if len(synced) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder)

    monkeypatch.setattr(posix_module, "_fsync_dir", failing)
    with pytest.raises(StorageError):
        log.append("commit", 1, BODIES["commit"], token="t1")
    assert log.append("commit", 1, BODIES["commit"], token="t1").seq == 2
    assert synced == ["log", "log"]


@pytest.mark.parametrize(
    "name", ["log/00000009.json.bak", "log/00000009.json~", "log/notes.txt", "log/9.json"]
)
def test_strange_files_in_the_folder_are_no_records(memory: MemoryStorage, name: str) -> None:
    fill(memory)
    memory.put(name, memory.get(layout.log_record(1)))
    assert RunLog(memory).read().unreadable == ()
    assert RunLog(memory).append("fence", 2).seq == 7


def _forged(record: LogRecord, **changes: Any) -> bytes:
    return encode_record(replace(record, **changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"sum": 1}',
        b"\xff",
        b"[" * 5000,
        b'{"sum":NaN}',
        b'{"sum":"x","body":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"sum":"x","seq":NaN}',
        b'{"sum":"x","token":"\\ud800"}',
        b'{"sum":"\xed\xa0\x80","a":1}',
        b'{"a":"\xed\xa0\x80","sum":"x"}',
        b'{"sum":"x","seq":1e999}',
        b"1" * 5000,
        _forged(LogRecord(seq=2, kind="commit", attempt=1, token="", prev="", time="", body={})),
        _forged(LogRecord(seq=2, kind="done", attempt=1, token="", prev="", time="")),
        _forged(
            LogRecord(
                seq=2, kind="bad", attempt=1, token="", prev="", time="", body={"commit_seq": "2"}
            )
        ),
        _forged(LogRecord(seq=3, kind="fence", attempt=1, token="", prev="", time="")),
        canonical(
            {
                "seq": 2,
                "kind": "x",
                "attempt": 1,
                "token": "",
                "prev": "",
                "time": "",
                "sum": digest(
                    {"seq": 2, "kind": "x", "attempt": 1, "token": "", "prev": "", "time": ""}
                ),
            }
        ),
    ],
)
def test_hostile_records_are_unreadable_and_nothing_else(
    memory: MemoryStorage, data: bytes
) -> None:
    RunLog(memory).append("fence", 1)
    memory.put(layout.log_record(2), data)
    assert RunLog(memory).read().unreadable == (2,)
    refused(memory, 2)


def test_a_field_that_a_newer_writer_added_is_accepted() -> None:
    record = LogRecord(seq=1, kind="fence", attempt=1, token="t", prev="", time="")
    value = to_json(record) | {"added": 1}
    assert decode_record(value | {"sum": digest(value)}, 1) == record
