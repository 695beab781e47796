"""Our own saves on a trained state, by the code that a rank runs: nothing is copied from it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from orchestrator.contract.manifest import CheckpointManifest, FileEntry
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import LogRecord
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import Assignment, StartPoint
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage import posix
from orchestrator.storage.opening import open_storage
from trainer.base_model.watch import BaseWatch
from trainer.checkpoint import engine, restore, state
from trainer.checkpoint.async_saver import AsyncSaver
from trainer.checkpoint.collective_save import CollectiveSaver
from trainer.checkpoint.commit import Committer
from trainer.checkpoint.coordinator import CheckpointCoordinator
from trainer.checkpoint.save_result import Committed
from trainer.checkpoint.shards import Directories, Tiers
from trainer.checkpoint.state import TrainingState
from trainer.collectives.group import Solo
from trainer.process.notice import NoticeBoard, watch_signals
from trainer.process.outcome import Leave
from trainer.tracking.metrics import MetricsLog

NOTICE = signal.SIGUSR1
MICRO_BATCH_S = 0.001
SAVER_WARM_S = 1.0
"""In which a saver process has started, so that it is in nobody's way."""


class QuietRank:
    """What the coordinator tells its agent goes nowhere."""

    number = 0

    def __init__(self) -> None:
        self.board = NoticeBoard()

    def beat(self, doing: str) -> None:
        """A sign of life."""

    def phase(self, name: str) -> None:
        """A stage of the rank."""

    def event(self, kind: str, **data: Any) -> None:
        """Something for the run's history."""

    def warn(self, key: str, text: str) -> None:
        """Nothing may go wrong unseen here."""
        raise RuntimeError(f"{key}: {text}")


def assignment(uri: str) -> Assignment:
    """The only rank of a first attempt."""
    plan = BatchPlan(micro=1, accumulation=1, world_size=1)
    job = ResolvedJob(
        name="bench",
        backend="local",
        model=ModelSpec(path="/nowhere"),
        quantization={},
        lora={},
        data=DataSpec(train="/nowhere"),
        training={},
        deepspeed={},
        zero_stage=2,
        resources=Resources(nodes=1, gpus_per_node=1),
        checkpoint=CheckpointSpec(uri=uri, every_steps=10),
        preemption=PreemptionSpec(grace_s=60.0),
        batch=plan,
    )
    return Assignment(
        run_id="bench",
        attempt=1,
        slot=0,
        master_addr="127.0.0.1",
        master_port=1,
        storage=uri,
        job=job,
        plan=plan,
        start=StartPoint(kind="fresh"),
        grace_s=60.0,
        facts={},
        log_seq=0,
    )


class Workplace:
    """One run directory and everything of a rank that saves into it.

    uri: of the run directory, which nobody else uses
    """

    def __init__(self, trainer: Any, uri: str, scratch: Path) -> None:
        self._trainer = trainer
        self._job = assignment(uri)
        self.storage = open_storage(uri)
        self._log = RunLog(self.storage)
        self._log.append("fence", 1)
        self._rank = QuietRank()
        self._metrics = MetricsLog(self.storage, 1, 0, lambda text: self._rank.warn("log", text))
        self._state = TrainingState(
            trainer, BaseWatch(None), scratch=scratch, steps_per_epoch=1000, global_batch=1
        )
        tiers = Tiers(self.storage)
        self.saver = CollectiveSaver(
            Solo(),
            self._state,
            self._metrics,
            tiers=tiers,
            committer=Committer(tiers, self._job),
            beside=AsyncSaver(self._job, 0),
            directories=Directories(1),
        )
        self._step = 0
        engine.install(trainer.deepspeed)

    def close(self) -> None:
        """End the saver process."""
        self.saver.close()

    # --- what is measured

    def save(self) -> Committed:
        """A save that training waits for, committed."""
        self._step += 1
        outcome = self.saver.save(self._step, "interval", pending_eval=False)
        if not isinstance(outcome, Committed):
            raise RuntimeError(outcome.message)
        return outcome

    def stage(self) -> None:
        """The part of a periodic save that training waits for."""
        self._step += 1
        self.saver.begin(self._step, "interval", pending_eval=False)

    def join(self) -> None:
        """Until the staged save is committed."""
        self.saver.wait(600.0)
        ended = self.saver.learn()
        if ended is None or not isinstance(ended.result, Committed):
            raise RuntimeError(f"a staged save ended with {ended}")

    def notice(self) -> float:
        """Seconds from the signal to the way out, the step committed; by the real coordinator."""
        self._step += 1
        self._rank.board = NoticeBoard()
        coordinator = CheckpointCoordinator(
            self._rank,  # type: ignore[arg-type]
            Solo(),
            replace(self._job, save_seconds=1.0),
            self._state,
            self._metrics,
            manifest=None,
        )
        coordinator.poll()
        time.sleep(SAVER_WARM_S)
        started = time.perf_counter()
        os.kill(os.getpid(), NOTICE)
        try:
            while not coordinator.poll().stop:
                time.sleep(MICRO_BATCH_S)
            coordinator.stop(self._step)
        except Leave as leave:
            if leave.ending.code != 75:
                raise RuntimeError(leave.ending.message) from None
        finally:
            coordinator.close()
        return time.perf_counter() - started

    def load(self) -> None:
        """Find the newest checkpoint, verify it, restore it, compare what arrived."""
        record = self._newest(RunLog(self.storage))
        verified = checkpoints.verify(self.storage, record)
        folder = self.storage.local_path(verified.commit.directory)
        restore.load_engine(
            self._trainer, str(folder), verified.manifest, 0, schedule_may_differ=False
        )

    # --- beside it

    def manifest(self) -> CheckpointManifest:
        """Of the newest checkpoint."""
        commit = self._newest(self._log).commit()
        return checkpoints.read_manifest(self.storage, commit.directory, commit.manifest_hash)

    def newest(self) -> str:
        """Directory of the newest checkpoint, relative to the run's."""
        return self._newest(self._log).commit().directory

    def tidy(self) -> None:
        """Give all checkpoints up, as retention does."""
        for record in checkpoints.live_commits(self._log.read()):
            checkpoints.retire(self.storage, self._log, 1, record, "benchmark")

    def listen(self) -> None:
        """Have signals reach the present notice board. Once a process, by its main thread."""
        watch_signals(
            lambda name: (
                self._rank.board.post(name, 60.0, lambda: None) if name == NOTICE.name else None
            )
        )

    def _newest(self, log: RunLog) -> LogRecord:
        return checkpoints.live_commits(log.read())[-1]


class NoHash:
    """In the place of ContentHash: counts, and hashes nothing."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def update(self, data: memoryview) -> None:
        """Only the size."""
        self.size_bytes += data.nbytes

    def beside(self, view: memoryview) -> AbstractContextManager[None]:
        """The same."""
        self.update(view)
        return nullcontext()

    def entry(self, path: str) -> FileEntry:
        """With a hash that is none."""
        return FileEntry(path=path, size_bytes=self.size_bytes, hash="blake3:" + "0" * 64)


@contextmanager
def unhashed_files() -> Iterator[None]:
    """Inside, files on a file system are written without a hash."""
    with mock.patch.object(posix, "ContentHash", NoHash):
        yield


@contextmanager
def unhashed() -> Iterator[None]:
    """Inside, a save hashes nothing at all: neither files nor the state in memory."""
    nothing = "blake3:" + "0" * 64
    with ExitStack() as stack:
        stack.enter_context(unhashed_files())
        stack.enter_context(mock.patch.object(state, "tensors_digest", return_value=nothing))
        stack.enter_context(mock.patch.object(state, "sha256", return_value="0" * 64))
        stack.enter_context(mock.patch.object(engine, "digest_of", return_value=nothing))
        yield
