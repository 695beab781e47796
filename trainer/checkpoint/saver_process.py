"""`python -m trainer.checkpoint.saver_process LINK MEMORY`: stores what is staged, beside training.

One for each rank, started by it and warm before it is needed; no torch. Messages are the
JSON lines of `contract.wire`:

    rank  -> saver  open {rank, assignment, base}
                    save {step, directory, files, digests, head, tiered}, metrics {step}
                    discard {directory, tiered}
    saver -> rank   saved {step, phase, result, seconds}; result: see save_result.encode
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from mmap import mmap

from orchestrator.contract import layout, wire
from orchestrator.contract.jsonio import Json, from_json
from orchestrator.contract.manifest import ShardManifest
from orchestrator.contract.spec import Assignment
from orchestrator.errors import RecordDamaged, StorageError
from orchestrator.run_directory import records
from orchestrator.run_directory.checkpoints import discard
from orchestrator.run_directory.tiers import local_tier
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import NotFound, Sink, Storage
from trainer.checkpoint.commit import BaseFacts, Committer
from trainer.checkpoint.save_result import Committed, Digests, Failed, Head, encode, result_of
from trainer.checkpoint.shards import ShardWriter, Tiers, mapped
from trainer.process.rank import die_with

CHUNK_BYTES = 8 << 20
METRICS_S = 30.0
"""How long a shard waits for the metrics before it; they never stop a save."""
POLL_S = 0.05
NICENESS = 5

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class SaverProcess:
    """Serves one rank until its link closes."""

    def __init__(self, link: int, memory: int, before_shard: Callable[[], None]) -> None:
        self._link = wire.attach(link)
        self._memory = memory
        self._before_shard = before_shard
        self._inbox: queue.Queue[wire.Message] = queue.Queue()
        self._metrics = -1
        """Step up to which the rank's metrics are durable."""

    def run(self) -> None:
        """Until the rank has gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        opened = self._inbox.get()
        assignment = from_json(Assignment, opened["assignment"])
        self._rank = int(opened["rank"])
        self._ranks = assignment.plan.world_size
        self._tiers = Tiers(
            open_storage(assignment.storage),
            local_tier(assignment.job.checkpoint, assignment.run_id),
        )
        self._committer = Committer(self._tiers, assignment, from_json(BaseFacts, opened["base"]))
        while True:
            message = self._inbox.get()
            if message["t"] == "save":
                self._save(message)
            elif message["t"] == "discard":
                place = self._tiers.place(tiered=message["tiered"])
                discard(place.storage, message["directory"])
            elif message["t"] == "metrics":
                self._metrics = int(message["step"])

    def _save(self, message: Json) -> None:
        started = time.monotonic()
        head = from_json(Head, message["head"])
        place = self._tiers.place(tiered=message["tiered"], copied=True)
        writer = ShardWriter(place, message["directory"])
        memory = mapped(self._memory)
        for item in message["files"]:
            writer.write(item["path"], _copier(memory, item["offset"], item["size_bytes"]))
        with writer.guard():
            self._before_shard()
        self._wait_for_metrics(head.step)
        writer.finish(self._rank, from_json(Digests, message["digests"]))
        failure = writer.failure()
        self._tell(head.step, "failed" if failure else "written", encode(failure), started)
        if self._rank == 0 and failure is None:
            result = result_of(lambda: self._commit(writer, head))
            self._tell(head.step, "ended", encode(result), started)

    def _commit(self, writer: ShardWriter, head: Head) -> Committed | Failed:
        storage, directory = writer.place.storage, writer.directory
        shards = [self._shard(storage, directory, rank) for rank in range(self._ranks)]
        return self._committer.commit(directory, shards, head, writer.place)

    def _shard(self, storage: Storage, directory: str, rank: int) -> ShardManifest:
        """A rank's shard, waited for: its own process tells the others if it never comes."""
        while True:
            try:
                return records.read(storage, ShardManifest, f"{directory}/{layout.shard(rank)}")
            except NotFound:
                time.sleep(POLL_S)
            except RecordDamaged as fault:
                raise StorageError(fault.message) from None

    def _wait_for_metrics(self, step: int) -> None:
        """Lines of the steps in a checkpoint are durable before it; saves wait in the queue."""
        end = time.monotonic() + METRICS_S
        while self._metrics < step and (left := end - time.monotonic()) > 0:
            try:
                message = self._inbox.get(timeout=left)
            except queue.Empty:
                return
            self._metrics = int(message["step"])

    def _tell(self, step: int, phase: str, result: Json, started: float) -> None:
        seconds = round(time.monotonic() - started, 4)
        fields = {"step": step, "phase": phase, "result": result, "seconds": seconds}
        self._link.sendall(wire.encode("saved", fields))

    def _listen(self) -> None:
        buffer = wire.LineBuffer()
        try:
            while data := self._link.recv(1 << 16):
                for message in buffer.feed(data):
                    self._inbox.put(message)
        finally:
            os._exit(0)


def _copier(source: mmap | None, offset: int, size: int) -> Callable[[Sink], object]:
    def copy(sink: Sink) -> None:
        if source is not None:
            view = memoryview(source)[offset : offset + size]
            for start in range(0, size, CHUNK_BYTES):
                sink.write(view[start : start + CHUNK_BYTES])

    return copy


def main(before_shard: Callable[[], None] = lambda: None) -> None:
    """Run as the saver of the rank that has started this process."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    die_with(os.getppid())
    os.nice(NICENESS)
    link, memory = map(int, sys.argv[1:3])
    SaverProcess(link, memory, before_shard).run()


if __name__ == "__main__":
    main()
