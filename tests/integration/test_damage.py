"""The damage matrix: three checkpoints, every file of any of them hurt in every way.

Required: the newest good one or a clear refusal; what is bad is marked in the log; never a
silent difference.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout, regular
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartFrom, StartPoint
from orchestrator.errors import CheckpointError, LogDamaged, NotOwner, StorageError
from orchestrator.helper.selector import Selector
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.node_copies import NodeCopies
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage import posix as posix_module
from orchestrator.storage.posix import PosixStorage
from tests.unit.run_directory import fakes

STEPS = (10, 20, 30)
NAMES = ["manifest.json", *sorted(fakes.contents(1, 30))]
FACTS = {"world.nodes": 1}


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path, _: Path) -> None:
    path.unlink()


def extend(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap(path: Path, other: Path) -> None:
    """With the same file of another checkpoint."""
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def to_folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def to_link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


HURTS: list[Callable[[Path, Path], None]] = [
    flip,
    truncate,
    empty,
    delete,
    extend,
    swap,
    to_folder,
    to_link,
]


class Run:
    """A run directory with three checkpoints by attempt 1, looked at by attempt 2."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = PosixStorage(root)
        self.told: list[tuple[str, dict[str, Any]]] = []

    @classmethod
    def make(cls, root: Path) -> Run:
        run = cls(root)
        log = RunLog(run.storage)
        log.append("fence", 1)
        for step in STEPS:
            fakes.commit(run.storage, log, step, facts=FACTS)
        log.append("fence", 2)
        return run

    def path(self, step: int, name: str) -> Path:
        return (
            self.root
            / layout.checkpoint_dir(1, step)
            / name.replace("global_step30", f"global_step{step}")
        )

    def choose(self, start: StartFrom | None = None, attempt: int = 2) -> StartPoint:
        selector = Selector(
            self.storage,
            RunLog(self.storage),
            attempt,
            FACTS,
            "warn",
            (),
            lambda kind, data: self.told.append((kind, data)),
            NodeCopies(self.storage, "run", attempt, 0),
        )
        return selector.choose(start or StartFrom())

    def bad(self) -> list[tuple[str, str]]:
        """(directory, reason) of the marks in the log."""
        view = RunLog(self.storage).read()
        return [(r.retire().directory, r.retire().reason) for r in view.records if r.kind == "bad"]

    def commits(self) -> list[LogRecord]:
        return [r for r in RunLog(self.storage).read().records if r.kind == "commit"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run.make(tmp_path_factory.mktemp("damage") / "run").root


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Run:
    shutil.copytree(template, tmp_path / "run")
    return Run(tmp_path / "run")


def assert_started_from(run: Run, point: StartPoint, step: int) -> None:
    """From this step, and every byte there is what was written."""
    assert (point.kind, point.step) == ("checkpoint", step)
    assert point.directory == str(run.root / layout.checkpoint_dir(1, step))
    for name, data in fakes.contents(1, step).items():
        assert (Path(point.directory) / name).read_bytes() == data


def test_undamaged(run: Run) -> None:
    assert_started_from(run, run.choose(), 30)
    assert run.bad() == []
    assert [kind for kind, _ in run.told] == ["resuming"]


@pytest.mark.parametrize("hurt", HURTS, ids=lambda h: h.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_newest_is_damaged(run: Run, name: str, hurt: Callable[[Path, Path], None]) -> None:
    hurt(run.path(30, name), run.path(20, name))
    # swapping hurts both
    good = 10 if hurt is swap else 20
    assert_started_from(run, run.choose(), good)
    steps = [20, 30] if hurt is swap else [30]
    assert sorted(d for d, _ in run.bad()) == [layout.checkpoint_dir(1, s) for s in steps]
    short = name.rsplit("/", 1)[-1]
    directory, reason = run.bad()[0]
    assert reason.startswith(f"{directory}/")
    assert short in reason
    told = [d for kind, d in run.told if kind == "checkpoint_bad"]
    assert [(d["directory"], d["reason"]) for d in told] == run.bad()
    assert run.told[-1][1]["step"] == good
    # a second look finds the marks and needs no new ones
    before = len(run.bad())
    assert_started_from(run, run.choose(), good)
    assert len(run.bad()) == before


@pytest.mark.parametrize("hurt", [flip, truncate, delete, extend], ids=lambda h: h.__name__)
@pytest.mark.parametrize(
    "hit", [set(c) for n in (1, 2, 3) for c in itertools.combinations(STEPS, n)], ids=str
)
def test_any_set_of_them_is_damaged(
    run: Run, hit: set[int], hurt: Callable[[Path, Path], None]
) -> None:
    for position, step in enumerate(sorted(hit)):
        name = NAMES[(position * 3) % len(NAMES)]
        hurt(run.path(step, name), run.path(step, name))
    left = [s for s in STEPS if s not in hit]
    if left:
        assert_started_from(run, run.choose(), left[-1])
        expected = [s for s in STEPS if s in hit and s > left[-1]]
        assert [d for d, _ in run.bad()] == [layout.checkpoint_dir(1, s) for s in expected[::-1]]
        return
    with pytest.raises(CheckpointError) as caught:
        run.choose()
    assert str(caught.value) == (
        "no checkpoint of this run can be trusted any more; each fault is in `events`\n"
        "  hint: `qvl-orchestrate resume run --restart-from weights` takes adapter weights only, "
        "`qvl-orchestrate resume run --restart-from scratch` starts anew"
    )
    assert len(run.bad()) == 3
    # and it stays refused
    with pytest.raises(CheckpointError, match="can be trusted any more"):
        run.choose()


def test_all_directories_gone(run: Run) -> None:
    shutil.rmtree(run.root / "attempts")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be trusted"):
        run.choose()
    assert [reason.rsplit("/", 1)[-1] for _, reason in run.bad()] == [
        "manifest.json is missing"
    ] * 3


def test_two_checkpoint_directories_swapped(run: Run) -> None:
    one, two = (run.root / layout.checkpoint_dir(1, s) for s in (20, 30))
    one.rename(run.root / "aside")
    two.rename(one)
    (run.root / "aside").rename(two)
    assert_started_from(run, run.choose(), 10)


def test_extra_files_change_nothing(run: Run) -> None:
    run.path(30, "adapter_model.bin").write_bytes(b"?")
    run.path(30, ".tmp-1").write_bytes(b"?")
    assert_started_from(run, run.choose(), 30)


def test_a_fresh_run_starts_fresh(tmp_path: Path) -> None:
    run = Run(tmp_path)
    RunLog(run.storage).append("fence", 2)
    assert run.choose() == StartPoint(kind="fresh")


@pytest.mark.parametrize("seq", [2, 3, 4])
def test_a_damaged_commit_record_never_leads_to_a_fresh_start(run: Run, seq: int) -> None:
    """A reader passes over it; once something must be written, the log is refused."""
    for step in STEPS:
        if step != STEPS[seq - 2]:
            run.path(step, "latest").unlink()
    path = run.root / layout.log_record(seq)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises((CheckpointError, LogDamaged)):
        run.choose()


def test_a_log_with_nothing_but_a_damaged_commit_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log = RunLog(run.storage)
    log.append("fence", 1)
    fakes.commit(run.storage, log, 10)
    (tmp_path / layout.log_record(2)).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be trusted"):
        run.choose()


def test_a_damaged_record_is_passed_over_when_a_newer_one_is_good(run: Run) -> None:
    path = run.root / layout.log_record(3)
    path.write_bytes(b"")
    assert_started_from(run, run.choose(), 30)
    warned = [data for kind, data in run.told if kind == "warning"]
    assert warned == [{"message": "unreadable records of the run's log: 3"}]


def test_a_replaced_attempt_marks_nothing(run: Run) -> None:
    run.path(30, "latest").unlink()
    RunLog(run.storage).append("fence", 3)
    with pytest.raises(NotOwner):
        run.choose()
    assert run.bad() == []


# --- what a person asks for


def spoil_all(run: Run) -> None:
    for step in STEPS:
        run.path(step, "scheduler.pt").unlink()


def test_weights_of_a_damaged_checkpoint_whose_adapter_is_intact(run: Run) -> None:
    spoil_all(run)
    with pytest.raises(CheckpointError):
        run.choose()
    seq = RunLog(run.storage).read().last_seq
    point = run.choose(StartFrom(kind="weights", after_seq=seq), attempt=2)
    assert point == StartPoint(
        kind="weights", directory=str(run.root / layout.checkpoint_dir(1, 30))
    )


def test_weights_pass_over_a_damaged_adapter(run: Run) -> None:
    spoil_all(run)
    flip(run.path(30, fakes.ADAPTER), run.path(30, fakes.ADAPTER))
    delete(run.path(20, fakes.ADAPTER), run.path(20, fakes.ADAPTER))
    point = run.choose(StartFrom(kind="weights", after_seq=5))
    assert point.directory == str(run.root / layout.checkpoint_dir(1, 10))


def test_no_adapter_left(run: Run) -> None:
    for step in STEPS:
        flip(run.path(step, fakes.ADAPTER), run.root)
    with pytest.raises(CheckpointError, match="no adapter of this run can be read any more"):
        run.choose(StartFrom(kind="weights", after_seq=5))


def test_weights_of_a_named_checkpoint(run: Run) -> None:
    ref = layout.checkpoint_dir(1, 20)
    point = run.choose(StartFrom(kind="weights", ref=ref, after_seq=5))
    assert point.directory == str(run.root / ref)
    flip(run.path(20, fakes.ADAPTER), run.root)
    with pytest.raises(CheckpointError, match="no adapter of this run"):
        run.choose(StartFrom(kind="weights", ref=ref, after_seq=5))


def test_scratch_starts_fresh_until_there_is_newer_progress(run: Run) -> None:
    start = StartFrom(kind="scratch", after_seq=5)
    assert run.choose(start) == StartPoint(kind="fresh")
    log = RunLog(run.storage)
    fakes.commit(run.storage, log, 5, attempt=2, facts=FACTS)
    assert run.choose(start).step == 5


def test_scratch_whose_progress_is_damaged_starts_fresh_again_and_says_so(run: Run) -> None:
    log = RunLog(run.storage)
    record = fakes.commit(run.storage, log, 5, attempt=2, facts=FACTS)
    (run.root / record.commit().directory / "latest").unlink()
    assert run.choose(StartFrom(kind="scratch", after_seq=5)) == StartPoint(kind="fresh")
    assert [kind for kind, _ in run.told] == ["checkpoint_bad"]


def test_a_named_checkpoint(run: Run) -> None:
    ref = layout.checkpoint_dir(1, 20)
    point = run.choose(StartFrom(kind="checkpoint", ref=ref, after_seq=5))
    assert (point.step, point.commit_seq) == (20, 3)


@pytest.mark.parametrize("hurt", [flip, truncate, delete], ids=lambda h: h.__name__)
def test_a_named_checkpoint_that_is_damaged_is_refused_not_replaced(
    run: Run, hurt: Callable[[Path, Path], None]
) -> None:
    hurt(run.path(20, "scheduler.pt"), run.root)
    with pytest.raises(CheckpointError, match="checkpoint-20/scheduler.pt"):
        run.choose(StartFrom(kind="checkpoint", ref=layout.checkpoint_dir(1, 20), after_seq=5))


def test_a_named_checkpoint_that_is_bad_or_retired_is_refused(run: Run) -> None:
    log = RunLog(run.storage)
    checkpoints.mark_bad(log, 2, run.commits()[1], "x")
    checkpoints.retire(run.storage, log, 2, run.commits()[0], "keep_last")
    for step in (10, 20, 40):
        ref = layout.checkpoint_dir(1, step)
        with pytest.raises(
            CheckpointError, match=f"{ref} is not a checkpoint of this run any more"
        ):
            run.choose(StartFrom(kind="checkpoint", ref=ref, after_seq=99))


def test_no_name(run: Run) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint was named"):
        run.choose(StartFrom(kind="checkpoint", after_seq=5))


def test_a_checkpoint_elsewhere_is_verified_too(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run.root / layout.checkpoint_dir(1, 20), elsewhere)
    start = StartFrom(kind="checkpoint", ref=str(elsewhere), after_seq=5)
    point = run.choose(start)
    assert (point.step, point.directory, point.commit_seq) == (20, str(elsewhere), None)
    truncate(elsewhere / "scheduler.pt", elsewhere)
    with pytest.raises(CheckpointError, match="elsewhere/scheduler.pt has"):
        run.choose(start)
    (elsewhere / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="elsewhere/manifest.json is missing"):
        run.choose(start)


def test_weights_elsewhere_must_be_there(run: Run, tmp_path: Path) -> None:
    elsewhere = run.root / layout.checkpoint_dir(1, 20)
    start = StartFrom(kind="weights", ref=str(elsewhere), after_seq=5)
    assert run.choose(start) == StartPoint(kind="weights", directory=str(elsewhere))
    (elsewhere / fakes.ADAPTER).unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is missing"):
        run.choose(start)


# --- a disk that does not give the bytes


def refuse_reads(patch: pytest.MonkeyPatch, *names: str) -> None:
    real = regular.open_regular

    def failing(path: Path, *args: Any, **more: Any) -> Any:
        if any(name in str(path) for name in names):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **more)

    patch.setattr(regular, "open_regular", failing)
    patch.setattr(posix_module, "open_regular", failing)


@pytest.mark.parametrize("name", ["scheduler.pt", layout.MANIFEST])
def test_an_unreadable_file_costs_one_checkpoint_and_only_for_now(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        refuse_reads(patch, f"checkpoint-30/{name}")
        assert run.choose().step == 20
    assert run.bad() == []
    kind, said = run.told[0]
    assert kind == "warning"
    assert said["message"].startswith("passed over for now: ")
    assert f"checkpoint-30/{name} cannot be read undamaged (Input/output error)" in said["message"]
    assert_started_from(run, run.choose(), 30)


def test_when_nothing_can_be_read_the_storage_is_to_blame(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_reads(patch, "latest")
        with pytest.raises(StorageError, match="no checkpoint can be read now: .*/latest"):
            run.choose()
        with pytest.raises(StorageError):
            run.choose(StartFrom(kind="scratch", after_seq=1))
    assert run.bad() == []
    assert_started_from(run, run.choose(), 30)
