"""Retention: nothing is given up before a newer checkpoint was read back and found right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.errors import LogDamaged, NotOwner, StorageError
from orchestrator.helper.retention import Retention
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import SegmentWriter
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import PendingUpload
from tests.unit.run_directory import fakes

_numbers = itertools.count()


class Bench:
    def __init__(self, keep_last: int = 1, attempt: int = 1, keep_best: int = 0) -> None:
        self.storage = MemoryStorage(f"memory://retention-{next(_numbers)}")
        self.log = RunLog(self.storage)
        self.log.append("fence", attempt)
        self.attempt = attempt
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.retention = self.new_retention(keep_last, keep_best)

    def new_retention(self, keep_last: int, keep_best: int = 0) -> Retention:
        return Retention(
            self.storage,
            self.attempt,
            keep_last,
            lambda kind, data: self.told.append((kind, data)),
            keep_best=keep_best,
        )

    def evaluate(self, step: int, loss: float | None) -> None:
        data = {"step": step, "metrics": {"eval_loss": loss, "eval_samples": 8}}
        line = {"kind": "evaluated", "data": data}
        writer = SegmentWriter(self.storage, layout.attempt_events(self.attempt, "node-0"))
        writer.add(line)
        writer.flush()
        self.retention.heard("evaluated", data)

    def commit(self, step: int) -> None:
        fakes.commit(self.storage, self.log, step, attempt=self.attempt)

    def spoil(self, step: int, name: str = fakes.ADAPTER) -> None:
        path = f"{layout.checkpoint_dir(self.attempt, step)}/{name}"
        self.storage.put(path, self.storage.get(path)[:-1] + b"?")

    def live(self) -> list[int]:
        view = RunLog(self.storage).read()
        return [r.commit().step for r in checkpoints.live_commits(view)]

    def folders(self) -> set[int]:
        listing = self.storage.list(f"{layout.attempt_dir(self.attempt)}checkpoints/", deep=True)
        return {int(e.path.split("/")[3].rsplit("-", 1)[1]) for e in listing}

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_newest_are_kept_and_the_rest_given_up(keep_last: int) -> None:
    bench = Bench(keep_last)
    for step in range(1, 7):
        bench.commit(step)
        bench.retention.retain()
        kept = list(range(max(1, step - keep_last + 1), step + 1))
        assert bench.live() == kept
        assert bench.folders() == set(kept)
    assert bench.kinds().count("verified") == 6
    assert bench.kinds().count("retired") == 6 - keep_last


def test_the_best_by_evaluation_stay_whatever_comes_later() -> None:
    bench = Bench(keep_last=1, keep_best=2)
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: 1.0}
    best = {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {2, 4}, 5: {2, 5}, 6: {2, 5, 6}}
    for step in range(1, 7):
        bench.commit(step)
        if step in losses:
            bench.evaluate(step, losses[step])
        bench.retention.retain()
        assert set(bench.live()) == bench.folders() == best[step], step


def test_the_best_are_known_to_the_next_attempt_too() -> None:
    bench = Bench(keep_last=1, keep_best=1)
    bench.commit(1)
    bench.evaluate(1, 0.5)
    for step in (2, 3):
        bench.commit(step)
    bench.new_retention(1, keep_best=1).retain()
    assert bench.live() == [1, 3]
    bench.new_retention(1).retain()
    assert bench.live() == [3]


def test_evaluations_that_cannot_be_read_keep_everything() -> None:
    bench = Bench(keep_last=1, keep_best=1)
    for step in (1, 2, 3):
        bench.commit(step)

    def unreadable(prefix: str, **how: Any) -> Any:
        raise StorageError("away")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bench.retention._storage, "list", unreadable)
        bench.retention.retain()
    assert bench.live() == [1, 2, 3]


def test_keep_last_of_nothing_still_keeps_one() -> None:
    bench = Bench(0)
    for step in (1, 2):
        bench.commit(step)
        bench.retention.retain()
    assert bench.live() == [2]


def test_a_bad_newest_is_marked_and_costs_nothing_else() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.retention.retain()
    bench.commit(2)
    bench.spoil(2)
    bench.retention.retain()
    assert bench.live() == [1]
    assert bench.folders() == {1, 2}, "the bad one's files stay for a person"
    assert bench.told[-1][0] == "checkpoint_bad"
    assert bench.told[-1][1]["directory"] == layout.checkpoint_dir(1, 2)
    assert "does not match its hash" in bench.told[-1][1]["reason"]
    bench.retention.retain()
    assert bench.live() == [1]


def test_nothing_is_given_up_for_a_newer_one_that_is_not_verified() -> None:
    """Even with many: each retirement follows the verification of something newer."""
    bench = Bench(1)
    for step in (1, 2, 3):
        bench.commit(step)
        bench.spoil(step) if step == 3 else None
    bench.retention.retain()
    assert bench.live() == [1, 2]
    assert bench.folders() == {1, 2, 3}
    bench.retention.retain()
    assert bench.live() == [2]


def test_the_retire_record_stands_before_the_first_file_goes() -> None:
    bench = Bench(1)
    order: list[str] = []
    delete, create = bench.storage.delete, bench.storage.create
    bench.commit(1)
    bench.commit(2)

    def noting_delete(path: str) -> None:
        order.append(f"delete {path}")
        delete(path)

    def noting_create(path: str, data: bytes) -> Any:
        order.append(f"create {path}")
        return create(path, data)

    bench.storage.delete = noting_delete  # type: ignore[method-assign]
    bench.storage.create = noting_create  # type: ignore[method-assign]
    bench.retention.retain()
    assert order[0].startswith("create log/")
    assert order[1] == f"delete {layout.checkpoint_dir(1, 1)}/{layout.MANIFEST}"
    assert all(x.startswith(f"delete {layout.checkpoint_dir(1, 1)}/") for x in order[1:])


def test_a_replaced_attempt_gives_up_nothing() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.commit(2)
    RunLog(bench.storage).append("fence", 2)
    content = fakes.snapshot(bench.storage)
    with pytest.raises(NotOwner):
        bench.retention.retain()
    assert fakes.snapshot(bench.storage) == content


def test_a_replaced_attempt_marks_nothing_bad() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.spoil(1)
    RunLog(bench.storage).append("fence", 2)
    content = fakes.snapshot(bench.storage)
    with pytest.raises(NotOwner):
        bench.retention.retain()
    assert fakes.snapshot(bench.storage) == content


def leftovers() -> Bench:
    """Attempt 2 after attempt 1 left: 1 committed, 2 bad, 3 retired halfway, 4 never committed."""
    bench = Bench(1)
    for step in (1, 2, 3):
        bench.commit(step)
    bench.log.read()
    two, three = [r for r in bench.log.read().records if r.kind == "commit"][1:]
    checkpoints.mark_bad(bench.log, 1, two, "test")
    body = {"commit_seq": three.seq, "directory": three.commit().directory, "reason": "keep_last"}
    bench.log.append("retire", 1, body)
    fakes.write(bench.storage, 4)
    fakes.write(bench.storage, 9, attempt=2)
    bench.log.append("fence", 2)
    bench.attempt = 2
    bench.retention = bench.new_retention(1)
    bench.attempt = 1
    return bench


def test_leftovers_of_fenced_attempts_are_removed() -> None:
    bench = leftovers()
    bench.retention.clean_leftovers()
    assert bench.folders() == {1, 2}
    bench.attempt = 2
    assert bench.folders() == {9}, "our own half-written checkpoint stays"


def test_with_a_damaged_log_nothing_is_removed() -> None:
    bench = leftovers()
    bench.storage.put(layout.log_record(2), b"?")
    content = fakes.snapshot(bench.storage)
    with pytest.raises(LogDamaged, match="record 2 of the run's log cannot be read"):
        bench.retention.clean_leftovers()
    assert fakes.snapshot(bench.storage) == content


def test_with_a_log_that_lost_its_beginning_nothing_is_removed() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.retention.retain()
    bench.commit(2)
    bench.storage.delete(layout.log_record(1))
    content = fakes.snapshot(bench.storage)
    with pytest.raises(LogDamaged, match="record 1 of the run's log has gone"):
        bench.retention.retain()
    assert fakes.snapshot(bench.storage) == content


def test_the_thread_does_what_is_queued_and_ends() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.retention.start(resumed_from=2)
    bench.commit(2)
    bench.retention.committed()
    bench.retention.finish(10.0)
    assert bench.live() == [2]
    assert bench.kinds() == ["verified", "retired"]


def test_the_thread_of_a_replaced_attempt_ends_quietly() -> None:
    bench = Bench(1)
    bench.commit(1)
    bench.commit(2)
    RunLog(bench.storage).append("fence", 2)
    bench.retention.committed()
    bench.retention.committed()
    bench.retention.finish(10.0)
    assert bench.live() == [1, 2]
    assert "retired" not in bench.kinds()


def test_a_keeper_that_never_began_can_be_finished() -> None:
    Bench(1).retention.finish(10.0)


class WithUploads(MemoryStorage):
    """Keeps what somebody began to write and did not finish."""

    def __init__(self, uri: str, *pending: PendingUpload) -> None:
        super().__init__(uri)
        self.pending = list(pending)

    def uploads(self) -> Iterator[PendingUpload]:
        return iter(self.pending)

    def abort_upload(self, upload: PendingUpload) -> None:
        self.pending.remove(upload)


def test_uploads_of_fenced_attempts_and_old_ones_are_given_up() -> None:
    now = SystemClock().now()
    rows = {
        "fenced": PendingUpload("attempts/000001/checkpoints/checkpoint-5/a", "1", now),
        "fenced too": PendingUpload("attempts/000002/x", "2", now),
        "mine": PendingUpload("attempts/000003/checkpoints/checkpoint-9/a", "3", now - 3600),
        "mine, stale": PendingUpload("attempts/000003/y", "4", now - 90_000),
        "newer": PendingUpload("attempts/000004/x", "5", now),
        "elsewhere": PendingUpload("events/x", "6", now),
        "elsewhere, stale": PendingUpload("events/y", "7", now - 90_000),
    }
    storage = WithUploads(f"memory://retention-{next(_numbers)}", *rows.values())
    RunLog(storage).append("fence", 3)
    Retention(storage, 3, 1, lambda _kind, _data: None).clean_leftovers()
    assert storage.pending == [rows["mine"], rows["newer"], rows["elsewhere"]]


@pytest.mark.parametrize("commits_after", [False, True])
def test_what_a_failed_save_left_goes_with_the_next_commit_and_no_sooner(
    commits_after: bool,
) -> None:
    """Until then its commit record may still be on its way to a remote store."""
    bench = Bench(keep_last=3)
    bench.commit(10)
    halves = [f"{layout.checkpoint_dir(1, 20, retry)}/half" for retry in (0, 1)]
    later = f"{layout.checkpoint_dir(1, 40)}/half"
    for path in (*halves, later):
        bench.storage.put(path, b"half")
    if commits_after:
        bench.commit(30)
    bench.retention.heard("save_failed", {"step": 20})
    bench.retention.finish(10.0)
    left = [e.path for e in bench.storage.list("attempts/", deep=True) if "half" in e.path]
    assert left == [later] if commits_after else [*halves, later]
    assert bench.live() == ([10, 30] if commits_after else [10])


def test_a_failed_save_has_the_keeper_look_again_for_what_can_be_given_up() -> None:
    """A retire record that found no room is written once there is some; no commit need come."""
    bench = Bench(keep_last=1)
    bench.commit(10)
    bench.commit(20)
    bench.retention.heard("save_failed", {"step": 30})
    bench.retention.finish(10.0)
    assert bench.live() == [20]
    assert bench.folders() == {20}
