"""A small run whose writer is killed or hindered, what the writer does, and what must hold after.

Torch-free: the files stand for those of a real checkpoint; everything that writes or reads
them is the real code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.spec import Assignment, StartFrom, StartPoint
from orchestrator.errors import NotOwner, StorageError
from orchestrator.helper.retention import Retention
from orchestrator.helper.selector import Selector
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.node_copies import NodeCopies
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import sha256
from orchestrator.storage.posix import PosixStorage
from tests.harness.clock import FakeClock
from tests.harness.jobs import job
from tests.unit.run_directory import fakes
from trainer.checkpoint.commit import Committer
from trainer.checkpoint.save_result import Committed, Digests, Failed, Head
from trainer.checkpoint.shards import Place, ShardWriter, Tiers

RANKS = 2
FACTS = {"world.nodes": 1}
STANDING = (10, 20)
"""Steps that attempt 1 has committed before anything happens."""
NEXT = 30

Say = Callable[[str], None]
"""Tells the outside that something was promised, for example `committed 1 30`."""


def committer(root: Path, attempt: int) -> Committer:
    spec = job(Path("/data"), ranks=RANKS)
    plan = BatchPlan(micro=2, accumulation=3, world_size=RANKS)
    assignment = Assignment(
        run_id="run",
        attempt=attempt,
        slot=0,
        master_addr="",
        master_port=0,
        storage=str(root),
        job=spec,
        plan=plan,
        start=StartPoint(kind="fresh"),
        grace_s=60.0,
        facts=FACTS,
        log_seq=0,
    )
    return Committer(Tiers(PosixStorage(root)), assignment, clock=FakeClock())


def save(root: Path, attempt: int, step: int) -> Committed:
    """One checkpoint of all ranks, as the saver processes write it."""
    storage, files = PosixStorage(root), fakes.contents(attempt, step, RANKS)
    directory = layout.checkpoint_dir(attempt, step)
    shards = []
    for rank in range(RANKS):
        writer = ShardWriter(Place(storage), directory)
        for name in sorted(files)[rank::RANKS]:
            writer.put(name, files[name])
        shards.append(writer.finish(rank, Digests(state="s", rng="r")))
        if writer.error is not None:
            raise writer.error
    head = Head(
        step=step,
        epoch=0,
        samples_seen=step,
        trigger="interval",
        learning_rate_hex="0x1p-10",
        pending_eval=False,
        adapter_digest="d",
        adapter_sha256=sha256(files[fakes.ADAPTER]),
    )
    outcome = committer(root, attempt).commit(directory, shards, head, Place(storage))
    if isinstance(outcome, Failed):
        raise StorageError(outcome.message)
    return outcome


def make(root: Path, *steps: int) -> None:
    """Attempt 1 with what it has committed so far."""
    RunLog(PosixStorage(root)).append("fence", 1)
    for step in steps:
        save(root, 1, step)


# --- what the writer does; the names are those of the tests


def do_save(root: Path, say: Say) -> None:
    save(root, 1, NEXT)
    say(f"committed 1 {NEXT}")


def do_save_again(root: Path, say: Say) -> None:
    """Over what an earlier save of the step has left."""
    do_save(root, say)


def do_retain(root: Path, say: Say) -> None:
    retention(root, 1).retain()
    say("retained")


def do_take_over(root: Path, say: Say) -> None:
    """A new attempt: fence, look for a checkpoint (the newest is damaged), clean up."""
    RunLog(PosixStorage(root)).append("fence", 2)
    say("fenced 2")
    choose(root, 2)
    retention(root, 2).clean_leftovers()
    say("cleaned")


def do_load(root: Path, say: Say) -> None:
    choose(root, 1)
    say("loaded")


def do_finish(root: Path, say: Say) -> None:
    target = committer(root, 1)
    last = target.find(STANDING[-1])
    assert last is not None
    target.finish(last)
    say("done")


WORK: dict[str, Callable[[Path, Say], None]] = {
    name.removeprefix("do_"): value for name, value in list(globals().items()) if name[:3] == "do_"
}


def prepare(work: str, root: Path) -> None:
    """The run as `work` finds it."""
    if work == "retain":
        make(root, *STANDING, NEXT)
        return
    make(root, *STANDING)
    if work == "save_again":
        fakes.write(PosixStorage(root), NEXT)
        (root / layout.checkpoint_dir(1, NEXT) / fakes.ADAPTER).write_bytes(b"half")
    if work == "take_over":
        save(root, 1, NEXT)
        (root / layout.checkpoint_dir(1, NEXT) / "latest").write_bytes(b"?")
        fakes.write(PosixStorage(root), NEXT + 10)
        (root / layout.checkpoint_dir(1, NEXT + 10) / ".tmp-dead").write_bytes(b"half")


def retention(root: Path, attempt: int, told: list[str] | None = None) -> Retention:
    notes = told if told is not None else []
    return Retention(
        PosixStorage(root), attempt, 1, lambda kind, data: notes.append(f"{kind} {data}")
    )


def choose(root: Path, attempt: int, told: list[str] | None = None) -> StartPoint:
    storage = PosixStorage(root)
    notes = told if told is not None else []
    selector = Selector(
        storage,
        RunLog(storage),
        attempt,
        FACTS,
        "warn",
        (),
        lambda kind, data: notes.append(f"{kind} {data}"),
        NodeCopies(storage, "run", attempt, 0),
    )
    return selector.choose(StartFrom())


# --- what must hold afterwards


@dataclass(frozen=True)
class Promised:
    """What the outside was told, in order."""

    said: tuple[str, ...]
    standing: int = STANDING[-1]

    @property
    def step(self) -> int:
        steps = [int(s.split()[2]) for s in self.said if s.startswith("committed ")]
        return max([self.standing, *steps])


def assert_sound(work: str, root: Path, promised: Promised) -> None:
    """The next attempt finds what was promised, whole; it can commit and tidy up."""
    attempt = 3
    log = RunLog(PosixStorage(root))
    view = log.read()
    assert view.unreadable == ()
    if "done" in promised.said:
        assert view.is_done()
    for said in promised.said:
        if said.startswith("fenced "):
            assert view.fence() >= int(said.split()[1])
            with pytest.raises(NotOwner):
                RunLog(PosixStorage(root)).append("retire", 1)
    assert_all_whole(work, root)
    log.append("fence", attempt)
    told: list[str] = []
    point = choose(root, attempt, told)
    assert point.step >= promised.step, f"step {point.step} after {promised.said}"
    assert_whole(root, point)
    spoilt = [line for line in told if "checkpoint_bad" in line]
    assert spoilt == [] or work == "take_over", f"a committed checkpoint was damaged: {spoilt}"
    save(root, attempt, 50)
    retention(root, attempt).clean_leftovers()
    retention(root, attempt).retain()
    again = choose(root, attempt + 1)
    assert again.step == 50
    assert_whole(root, again)
    assert_tidy(root)


def assert_whole(root: Path, point: StartPoint) -> None:
    """Every byte of what was chosen is what one save has written."""
    assert point.directory is not None
    attempt = int(Path(point.directory).parts[-3])
    assert Path(point.directory) == root / layout.checkpoint_dir(attempt, point.step)
    for name, data in fakes.contents(attempt, point.step, RANKS).items():
        assert (Path(point.directory) / name).read_bytes() == data, name


def assert_all_whole(work: str, root: Path) -> None:
    """Not only the newest: what is neither retired nor marked bad has all its files."""
    storage = PosixStorage(root)
    for record in checkpoints.live_commits(RunLog(storage).read()):
        if work != "take_over" or record.commit().step != NEXT:
            checkpoints.verify(storage, record)


def assert_tidy(root: Path) -> None:
    """Attempts that were replaced leave nothing but bad checkpoints, which are a person's."""
    view = RunLog(PosixStorage(root)).read()
    kept = {r.retire().directory for r in view.records if r.kind == "bad"}
    kept |= {r.commit().directory for r in checkpoints.live_commits(view)}
    for path in root.glob("attempts/**/*"):
        name = path.relative_to(root).as_posix()
        inside = "/".join(name.split("/")[:4])
        assert path.is_dir() or inside in kept, f"{name} was left behind"
        assert not path.name.startswith(".tmp-"), f"{name} was left behind"
