"""What reading and extending a long log costs, and that no short cut is believed blindly.

The budget stands in docs/storage.md.
"""

from __future__ import annotations

import pytest

from orchestrator.contract import layout
from orchestrator.contract.records import LogRecord, encode_record
from orchestrator.errors import LogDamaged, NotOwner, StorageError
from orchestrator.run_directory.runlog import COPY_EVERY, RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Storage
from tests.harness.clock import FakeClock
from tests.harness.faulty import Faulty

LONG = 1500


def fill(storage: Storage, count: int, mark: str = "t") -> list[LogRecord]:
    """So many fences, written as they would stand there."""
    prev, found = "", []
    for seq in range(1, count + 1):
        record = LogRecord(
            seq=seq, kind="fence", attempt=1, token=f"{mark}{seq}", prev=prev, time="", body={}
        )
        data = encode_record(record)
        storage.put(layout.log_record(seq), data)
        prev = sha256(data)
        found.append(record)
    return found


def copied(storage: Storage) -> RunLog:
    log = RunLog(storage, FakeClock())
    log.read()
    log.keep_copy()
    return log


@pytest.fixture
def counted(memory: MemoryStorage) -> Faulty:
    return Faulty(memory)


def cost(storage: Faulty) -> int:
    """Requests since it was last asked."""
    total = storage.asked.total()
    storage.asked.clear()
    return total


def test_a_long_log_is_read_once_and_extended_by_two_requests(counted: Faulty) -> None:
    records = fill(counted.inner, LONG)
    log = RunLog(counted, FakeClock())
    assert log.read().records == tuple(records)
    assert cost(counted) <= LONG + 3
    for _ in range(3):
        assert log.read().last_seq == LONG
        assert cost(counted) <= 2
    for number in range(1, 4):
        assert log.append("fence", 1).seq == LONG + number
        assert cost(counted) == 2


def test_a_new_reader_goes_on_from_the_copy(counted: Faulty) -> None:
    records = fill(counted.inner, LONG)
    log = copied(counted)
    late = [log.append("fence", 2) for _ in range(5)]
    cost(counted)
    assert RunLog(counted).read().records == (*records, *late)
    assert cost(counted) <= 4 + len(late)


def test_the_copy_is_written_anew_when_it_lacks_enough(counted: Faulty) -> None:
    fill(counted.inner, COPY_EVERY - 1)
    log = copied(counted)
    assert counted.asked["put"] == 0
    log.append("fence", 1)
    log.keep_copy()
    assert counted.asked["put"] == 1
    log.append("fence", 1)
    log.keep_copy()
    assert counted.asked["put"] == 1


@pytest.mark.parametrize("step", [7])
def test_a_copy_with_any_damage_is_ignored(memory: MemoryStorage, step: int) -> None:
    records = tuple(fill(memory, COPY_EVERY))
    copied(memory)
    good = memory.get(layout.LOG_COPY)
    for position in range(0, len(good), len(good) // 150 + step):
        for bit in (0x01, 0x80):
            bad = bytearray(good)
            bad[position] ^= bit
            memory.put(layout.LOG_COPY, bytes(bad))
            assert RunLog(memory).read().records == records, position
    for length in range(0, len(good), len(good) // 50):
        memory.put(layout.LOG_COPY, good[:length])
        assert RunLog(memory).read().records == records, length
    lines = good.split(b"\n")
    for other in ([*lines, lines[-1]], lines[1:], lines[::-1], [*lines[:3], *lines[4:]]):
        memory.put(layout.LOG_COPY, b"\n".join(other))
        assert RunLog(memory).read().records == records


def test_a_copy_of_less_than_the_log_is_gone_on_from(memory: MemoryStorage) -> None:
    records = tuple(fill(memory, COPY_EVERY))
    copied(memory)
    lines = memory.get(layout.LOG_COPY).split(b"\n")
    memory.put(layout.LOG_COPY, b"\n".join(lines[:40]))
    assert RunLog(memory).read().records == records


def test_the_copy_of_a_log_that_is_lost_or_was_replaced_is_ignored(memory: MemoryStorage) -> None:
    fill(memory, COPY_EVERY)
    copied(memory)
    for seq in range(1, COPY_EVERY + 1):
        memory.delete(layout.log_record(seq))
    assert RunLog(memory).read().records == ()
    other = tuple(fill(memory, COPY_EVERY + 5, mark="other"))
    assert RunLog(memory).read().records == other


def test_what_was_kept_is_not_believed_against_the_log(memory: MemoryStorage) -> None:
    fill(memory, 20)
    log = RunLog(memory, FakeClock())
    assert log.read().last_seq == 20
    for seq in range(1, 21):
        memory.delete(layout.log_record(seq))
    with pytest.raises(LogDamaged, match="record 20"):
        log.append("commit", 1, {})
    assert log.read().records == ()
    other = tuple(fill(memory, 30, mark="other"))
    assert log.read().records == other


def test_a_log_that_was_made_anew_and_longer_is_read_anew(memory: MemoryStorage) -> None:
    fill(memory, 20)
    log = RunLog(memory)
    log.read()
    other = tuple(fill(memory, 30, mark="other"))
    view = log.read()
    assert view.records == other
    assert view.unreadable == ()


def test_a_fence_is_met_without_having_been_read(counted: Faulty) -> None:
    """Whatever a listing shows or not: the number that a writer tries is taken."""
    fill(counted.inner, 3)
    log = RunLog(counted, FakeClock())
    log.read()
    RunLog(counted.inner).append("fence", 7)
    blind = counted.list
    counted.list = lambda prefix, **more: [  # type: ignore[method-assign]
        e for e in blind(prefix, **more) if e.path != layout.log_record(4)
    ]
    with pytest.raises(NotOwner, match="replaced by attempt 7"):
        log.append("commit", 1, {})


def test_a_listing_that_misses_the_last_record_stops_nobody(counted: Faulty) -> None:
    fill(counted.inner, 3)
    log = RunLog(counted, FakeClock())
    log.read()
    counted.list = lambda prefix, **more: []  # type: ignore[method-assign]
    assert log.append("fence", 1).seq == 4
    assert log.read().last_seq == 4


def test_a_copy_that_cannot_be_written_costs_nothing(counted: Faulty) -> None:
    fill(counted.inner, COPY_EVERY)
    counted.plan = lambda verb, _: StorageError("full") if verb == "put" else None
    log = RunLog(counted)
    log.read()
    with pytest.raises(StorageError):
        log.keep_copy()
    assert log.read().last_seq == COPY_EVERY
