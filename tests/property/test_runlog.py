"""Any interleaving of several attempts' appends, with lost replies and pauses at any call."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import Commit, Done, LogRecord, RecordKind, Retire
from orchestrator.errors import LogDamaged, NotOwner, StorageError
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Taken

KINDS: tuple[RecordKind, ...] = ("commit", "retire", "bad", "done")
BODIES: dict[str, Any] = {
    "fence": {},
    "commit": to_json(
        Commit(
            directory="d",
            step=1,
            manifest_hash="h",
            trigger="notice",
            size_bytes=1,
            adapter_sha256="s",
        )
    ),
    "retire": to_json(Retire(commit_seq=1, directory="d", reason="")),
    "bad": to_json(Retire(commit_seq=1, directory="d", reason="")),
    "done": to_json(Done(commit_seq=1, step=1, adapter_sha256="s")),
}
_spaces = itertools.count()


class Gate(MemoryStorage):
    """One writer's view: what it must do before its next create, and whether the reply is lost."""

    before: Any = None
    lose = False

    def create(self, path: str, data: bytes) -> Created | Taken:
        act, self.before = self.before, None
        if act is not None:
            act()
        outcome = super().create(path, data)
        if self.lose:
            self.lose = False
            raise StorageError("the reply was lost")
        return outcome


class Writer:
    def __init__(self, uri: str, attempt: int) -> None:
        self.storage = Gate(uri)
        self.log = RunLog(self.storage)
        self.attempt = attempt


class Appends(RuleBasedStateMachine):
    """Several attempts, each with two processes that append as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"memory://runlog-{next(_spaces)}"
        self.tokens = itertools.count()
        self.writers = [Writer(self.uri, a) for a in (1, 1, 2, 2, 3)]
        self.returned: list[LogRecord] = []
        self.lost: list[tuple[Writer, RecordKind, str]] = []

    def teardown(self) -> None:
        MemoryStorage._spaces.pop(self.uri, None)

    def append(self, writer: Writer, kind: RecordKind, token: str | None = None) -> None:
        token = token or f"t{next(self.tokens)}"
        try:
            record = writer.log.append(kind, writer.attempt, BODIES[kind], token=token)
        except NotOwner:
            assert self.fence() > writer.attempt
        except StorageError:
            self.lost.append((writer, kind, token))
        else:
            assert (record.kind, record.attempt, record.token) == (kind, writer.attempt, token)
            self.returned.append(record)

    def fence(self) -> int:
        return max((r.attempt for r in self.stored() if r.kind == "fence"), default=0)

    def stored(self) -> tuple[LogRecord, ...]:
        view = RunLog(MemoryStorage(self.uri)).read()
        assert view.unreadable == ()
        return view.records

    @rule(which=st.integers(0, 4), kind=st.sampled_from(["fence", *KINDS]))
    def one_appends(self, which: int, kind: RecordKind) -> None:
        self.append(self.writers[which], kind)

    @rule(
        which=st.integers(0, 4),
        kind=st.sampled_from(["fence", *KINDS]),
        rivals=st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from(["fence", *KINDS])), min_size=1, max_size=3
        ),
    )
    def one_is_paused_before_its_create(
        self, which: int, kind: RecordKind, rivals: list[tuple[int, RecordKind]]
    ) -> None:
        writer = self.writers[which]
        others = [(self.writers[n], k) for n, k in rivals if n != which]
        writer.storage.before = lambda: [self.append(w, k) for w, k in others]
        self.append(writer, kind)
        writer.storage.before = None

    @rule(which=st.integers(0, 4), kind=st.sampled_from(["fence", *KINDS]))
    def one_loses_a_reply(self, which: int, kind: RecordKind) -> None:
        writer = self.writers[which]
        writer.storage.lose = True
        self.append(writer, kind)
        writer.storage.lose = False

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def one_asks_again(self, data: st.DataObject) -> None:
        self.append(*self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1))))

    @rule(which=st.integers(0, 4))
    def one_restarts(self, which: int) -> None:
        self.writers[which] = Writer(self.uri, self.writers[which].attempt)

    @rule(which=st.integers(0, 4))
    def one_reads(self, which: int) -> None:
        assert self.writers[which].log.read().records == self.stored()

    @invariant()
    def numbers_are_dense_and_hashes_chain(self) -> None:
        storage = MemoryStorage(self.uri)
        before = ""
        for expected, entry in enumerate(storage.list(layout.LOG), 1):
            assert entry.path == layout.log_record(expected)
            data = storage.get(entry.path)
            assert json.loads(data)["prev"] == before
            before = sha256(data)

    @invariant()
    def no_record_of_an_attempt_stands_after_a_higher_fence(self) -> None:
        fence = 0
        for record in self.stored():
            assert record.attempt >= fence, record
            if record.kind == "fence":
                fence = max(fence, record.attempt)

    @invariant()
    def what_was_acknowledged_stands_once(self) -> None:
        stored = self.stored()
        tokens = [r.token for r in stored]
        assert len(set(tokens)) == len(tokens)
        for record in self.returned:
            assert stored[record.seq - 1] == record


Appends.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestAppends = Appends.TestCase


class Damaged(RuleBasedStateMachine):
    """A writer never goes past a damaged record, and a reader always names it."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"memory://runlog-{next(_spaces)}"
        self.storage = MemoryStorage(self.uri)
        self.good = [RunLog(self.storage).append("fence", 1) for _ in range(6)]
        self.hurt: set[int] = set()

    def teardown(self) -> None:
        MemoryStorage._spaces.pop(self.uri, None)

    @rule(
        seq=st.integers(1, 5), how=st.sampled_from(["flip", "cut", "gone", "swap"]), data=st.data()
    )
    def damage(self, seq: int, how: str, data: st.DataObject) -> None:
        path = layout.log_record(seq)
        if how == "gone":
            self.storage.delete(path)
        elif how == "swap":
            self.storage.put(path, self.storage.get(layout.log_record(6)))
        else:
            bytes_ = bytearray(self.good_bytes(seq))
            at = data.draw(st.integers(0, len(bytes_) - 1))
            bytes_[at] ^= 1
            self.storage.put(path, bytes(bytes_[:at] if how == "cut" else bytes_))
        self.hurt.add(seq)

    def good_bytes(self, seq: int) -> bytes:
        from orchestrator.contract.records import encode_record

        return encode_record(self.good[seq - 1])

    @invariant()
    def it_is_named_and_refused(self) -> None:
        view = RunLog(self.storage).read()
        assert set(view.unreadable) == self.hurt
        assert list(view.records) == [r for r in self.good if r.seq not in self.hurt]
        if not self.hurt:
            return
        try:
            RunLog(self.storage).append("fence", 9)
        except LogDamaged as fault:
            assert f"record {max(self.hurt)} " in fault.message
        else:
            raise AssertionError("a writer went past a damaged record")


Damaged.TestCase.settings = settings(max_examples=30, stateful_step_count=5, deadline=None)
TestDamaged = Damaged.TestCase


def test_the_gate_really_interleaves() -> None:
    """The machine above would prove nothing if pauses never raced."""
    uri = f"memory://runlog-{next(_spaces)}"
    old, new = Writer(uri, 1), Writer(uri, 2)
    old.log.append("fence", 1)

    old.storage.before = lambda: new.log.append("fence", 2)
    try:
        old.log.append("commit", 1, BODIES["commit"])
    except NotOwner:
        MemoryStorage._spaces.pop(uri)
    else:
        raise AssertionError
