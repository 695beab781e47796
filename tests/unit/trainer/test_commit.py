"""Commits of one rank on storage in memory: what fails, what is retried, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.contract.codes import ExitCode
from orchestrator.contract.manifest import Trigger
from orchestrator.contract.spec import Assignment, StartPoint
from orchestrator.errors import StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Taken
from tests.harness.clock import FakeClock
from tests.harness.jobs import job
from trainer.checkpoint.async_saver import Describe
from trainer.checkpoint.collective_save import CollectiveSaver
from trainer.checkpoint.commit import BaseFacts, Committer
from trainer.checkpoint.save_result import Committed, Digests, Failed, Head
from trainer.checkpoint.shards import Directories, FileWriter, Place, ShardWriter, Tiers
from trainer.collectives.group import Solo
from trainer.process.outcome import Ending, Leave
from trainer.tracking.metrics import MetricsLog

DIGESTS = Digests(state="s", rng="r", base="b")


class LossyStorage(MemoryStorage):
    """Loses replies of creates: the object is there, the caller gets an error."""

    lose = 0
    deaf = False
    """Until reset, nothing can be read either once a reply was lost."""
    silent = False

    def create(self, path: str, data: bytes) -> Created | Taken:
        outcome = super().create(path, data)
        if self.lose:
            self.lose -= 1
            self.silent = self.deaf
            raise StorageError("the reply was lost")
        return outcome

    def get(self, path: str) -> bytes:
        if self.silent:
            raise StorageError("no answer")
        return super().get(path)


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> LossyStorage:
    storage = LossyStorage(f"memory://{request.node.name}")
    RunLog(storage).append("fence", 1)
    return storage


class Stub:
    """The state of a rank that has one file."""

    digests = DIGESTS
    broken = False

    def capture(
        self, writer: FileWriter, step: int, trigger: Trigger, *, pending_eval: bool
    ) -> Describe:
        if self.broken:
            writer.write("model.bin", fail)
            writer.put("later.bin", b"x")
        writer.put("model.bin", b"weights")
        return lambda: (self.digests, head(step))

    def adapter_files(self) -> dict[str, bytes]:
        return {"adapter": b"weights"}


def fail(_sink: object) -> None:
    raise OSError(28, "No space left on device")


def saver(
    storage: MemoryStorage,
    recorded: str | None = None,
    source: Stub | None = None,
    directories: Directories | None = None,
) -> CollectiveSaver:
    assignment = Assignment(
        run_id="r",
        attempt=1,
        slot=0,
        master_addr="",
        master_port=0,
        storage=storage.uri,
        job=job(Path("/data"), ranks=1),
        plan=job(Path("/data"), ranks=1).batch,
        start=StartPoint(kind="fresh"),
        grace_s=60.0,
        facts={"gpu": "none"},
        log_seq=1,
    )
    tiers = Tiers(storage)
    base = BaseFacts(recorded=recorded)
    return CollectiveSaver(
        Solo(),
        source or Stub(),
        MetricsLog(storage, 1, 0, pytest.fail),
        tiers=tiers,
        committer=Committer(tiers, assignment, base, clock=FakeClock()),
        beside=None,  # type: ignore[arg-type]
        directories=directories or Directories(1),
    )


def head(step: int = 5) -> Head:
    return Head(
        step=step,
        epoch=0,
        samples_seen=60,
        trigger="interval",
        learning_rate_hex="0x1p-10",
        pending_eval=False,
        adapter_digest="d",
        adapter_sha256="a",
    )


def save(target: CollectiveSaver, step: int = 5) -> Committed | Failed:
    return target.save(step, "interval", pending_eval=False)


def test_commit_names_every_file_and_carries_the_facts(storage: LossyStorage) -> None:
    outcome = save(saver(storage))
    assert isinstance(outcome, Committed)
    (record,) = checkpoints.live_commits(RunLog(storage).read())
    assert outcome.seq == record.seq
    manifest = checkpoints.verify(storage, record).manifest
    assert manifest.facts == {"gpu": "none", "base_digest": "b"}
    assert [f.path for f in manifest.files] == ["model.bin", layout.shard(0)]
    assert storage.get(f"{record.commit().directory}/{layout.shard(0)}")


def test_writer_keeps_the_first_error_and_the_commit_reports_it(storage: LossyStorage) -> None:
    source = Stub()
    source.broken = True
    outcome = save(saver(storage, source=source))
    assert isinstance(outcome, Failed)
    assert outcome.message.startswith("rank 0: OSError")
    assert checkpoints.live_commits(RunLog(storage).read()) == []


def test_lost_reply_is_settled_by_trying_again(storage: LossyStorage) -> None:
    target = saver(storage)
    storage.lose = 2
    assert isinstance(save(target), Committed)
    assert len(checkpoints.live_commits(RunLog(storage).read())) == 1


def test_step_whose_reply_stays_lost_is_not_written_over(storage: LossyStorage) -> None:
    target = saver(storage)
    assert target.settled(5) is None
    storage.lose, storage.deaf = 1, True
    assert isinstance(save(target), Failed)
    storage.silent = False
    settled = target.settled(5)
    assert isinstance(settled, Committed)
    assert settled.adapter_sha256 == "a"


def test_what_a_failed_try_writes_late_is_in_nobodys_way(storage: LossyStorage) -> None:
    directories = Directories(1)
    late = ShardWriter(Place(storage), directories.next(5))
    outcome = save(saver(storage, directories=directories))
    assert isinstance(outcome, Committed)
    late.put("model.bin", b"of the first try")
    (record,) = checkpoints.live_commits(RunLog(storage).read())
    assert record.commit().directory == layout.checkpoint_dir(1, 5, retry=1)
    assert checkpoints.verify(storage, record).manifest.step == 5
    assert directories.next(6) == layout.checkpoint_dir(1, 6)


def ending(storage: LossyStorage, recorded: str | None = None, **stub: object) -> Ending:
    """The end of an attempt by a save: the same value on every rank."""
    source = Stub()
    for name, value in stub.items():
        setattr(source, name, value)
    with pytest.raises(Leave) as left:
        save(saver(storage, recorded, source))
    return left.value.ending


def test_replaced_attempt_is_told_so(storage: LossyStorage) -> None:
    RunLog(storage).append("fence", 2)
    found = ending(storage)
    assert (found.code, found.reason) == (ExitCode.NOT_OWNER, "not-owner")
    assert "attempt 2" in found.message


def test_damaged_log_is_never_passed(storage: LossyStorage) -> None:
    storage.put(layout.log_record(2), b"{}")
    found = ending(storage)
    assert (found.code, found.reason) == (ExitCode.REFUSED, "log-damaged")


def test_other_base_is_refused_naming_both(storage: LossyStorage) -> None:
    found = ending(storage, recorded="other")
    assert (found.code, found.reason) == (ExitCode.REFUSED, "contract")
    assert re.search(r"digest is b, .* made with other", found.message)
    assert isinstance(save(saver(storage, recorded="b")), Committed)


def test_base_that_changed_is_an_error_of_its_own(storage: LossyStorage) -> None:
    changed = Digests(state="s", rng="r", base="b", base_again="c")
    found = ending(storage, digests=changed)
    assert (found.code, found.reason) == (ExitCode.REFUSED, "base-changed")
    assert "was b and is c" in found.message


def test_done_is_recorded_and_copied(storage: LossyStorage) -> None:
    target = saver(storage)
    last = save(target, 8)
    assert isinstance(last, Committed)
    assert target.finish(last) is None
    done = RunLog(storage).read().done()
    assert done is not None
    assert (done.done().step, done.done().commit_seq) == (8, last.seq)
    assert storage.get(layout.DONE) == storage.get(layout.log_record(done.seq))
