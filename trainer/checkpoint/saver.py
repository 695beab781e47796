"""`python -m trainer.checkpoint.saver LINK MEMORY`: stores staged checkpoints beside training.

One for each rank, started by it and warm before it is needed; no torch. Messages are the
JSON lines of `contract.wire`:

    rank  -> saver  open {rank, assignment, recorded_base, base_facts}
                    save {step, directory, files, digests, head, tiered}, metrics {step}
                    discard {directory, tiered}
    saver -> rank   written {step, error (shards.Failed), seconds}
                    outcome {step, reply, seconds}      (rank 0's saver: see assemble.as_reply)
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from mmap import mmap

from orchestrator.contract import layout, wire
from orchestrator.contract.jsonio import Json, from_json, to_json
from orchestrator.contract.manifest import ShardManifest
from orchestrator.contract.spec import Assignment
from orchestrator.errors import RecordDamaged, StorageError
from orchestrator.run_directory import records
from orchestrator.run_directory.checkpoints import discard
from orchestrator.run_directory.tiers import LocalTier, local_tier
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import NotFound, Sink, Storage
from trainer.checkpoint import staging
from trainer.checkpoint.assemble import Assembler, as_reply
from trainer.checkpoint.shards import Committed, Digests, Failed, Head, ShardWriter
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
        self._storage: Storage = open_storage(assignment.storage)
        self._tier = local_tier(assignment.job.checkpoint, assignment.run_id)
        self._assembler = Assembler(
            self._storage,
            assignment,
            recorded_base=opened["recorded_base"],
            base_facts=opened["base_facts"],
        )
        while True:
            message = self._inbox.get()
            if message["t"] == "save":
                self._save(message)
            elif message["t"] == "discard":
                discard(self._place(tiered=message["tiered"]), message["directory"])
            elif message["t"] == "metrics":
                self._metrics = int(message["step"])

    def _save(self, message: Json) -> None:
        started = time.monotonic()
        head = from_json(Head, message["head"])
        tiered = bool(message["tiered"])
        writer = self._writer(message["directory"], tiered=tiered)
        with_memory = staging.mapped(self._memory)
        for item in message["files"]:
            writer.write(item["path"], _copier(with_memory, item["offset"], item["size_bytes"]))
        with writer.guard():
            self._before_shard()
        self._wait_for_metrics(head.step)
        writer.finish(self._rank, from_json(Digests, message["digests"]))
        failure = writer.failure()
        self._tell("written", head.step, started, error=failure and to_json(failure))
        if self._rank == 0 and failure is None:
            reply = as_reply(lambda: self._commit(writer.directory, head, tiered=tiered))
            self._tell("outcome", head.step, started, reply=reply)

    def _writer(self, directory: str, *, tiered: bool) -> ShardWriter:
        copy = None if self._tier is None or self._tier.commits else self._tier.storage
        return ShardWriter(self._place(tiered=tiered), directory, copy=copy)

    def _committing(self, *, tiered: bool) -> LocalTier | None:
        """The local tier where a copy there counts; not once it has failed (not `tiered`)."""
        return self._tier if tiered and self._tier is not None and self._tier.commits else None

    def _place(self, *, tiered: bool) -> Storage:
        local = self._committing(tiered=tiered)
        return self._storage if local is None else local.storage

    def _commit(self, directory: str, head: Head, *, tiered: bool) -> Committed | Failed:
        place = self._place(tiered=tiered)
        shards = [self._shard(place, directory, rank) for rank in range(self._ranks)]
        outcome = self._assembler.commit(directory, shards, head, self._committing(tiered=tiered))
        copies = self._tier is not None and not self._tier.commits
        if copies and isinstance(outcome, Committed):
            assert self._tier is not None
            manifest = f"{directory}/{layout.MANIFEST}"
            with suppress(StorageError):
                self._tier.storage.put(manifest, self._storage.get(manifest))
        return outcome

    def _shard(self, place: Storage, directory: str, rank: int) -> ShardManifest:
        """A rank's shard, waited for: its own process tells the others if it never comes."""
        while True:
            try:
                return records.read(place, ShardManifest, f"{directory}/{layout.shard(rank)}")
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

    def _tell(self, kind: str, step: int, started: float, **fields: Json) -> None:
        seconds = round(time.monotonic() - started, 4)
        self._link.sendall(wire.encode(kind, {"step": step, "seconds": seconds, **fields}))

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
        for chunk in _chunks(source, offset, size):
            sink.write(chunk)

    return copy


def _chunks(source: mmap | None, offset: int, size: int) -> Iterator[memoryview]:
    if source is None:
        return
    view = memoryview(source)
    for start in range(offset, offset + size, CHUNK_BYTES):
        yield view[start : min(start + CHUNK_BYTES, offset + size)]


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
