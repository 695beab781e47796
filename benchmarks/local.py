"""Saving to, and loading from, a file system: ours, the floor and the peers, interleaved."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours, peers, scene
from benchmarks.measure import Case, Table, interleave, seconds
from benchmarks.ours import Workplace
from benchmarks.peers import Peers
from orchestrator.storage.hashing import ContentHash

STEPS = 10
"""Between two periodic saves."""
FILES_AND_RANKS_BYTES = 256_000 + 64_000
"""What a checkpoint of one rank may hold beside tensors."""

FLOOR, MEMORY, READ = "floor", "memory copy", "read and hash"
SAVE, NOTICE, STAGE, LOAD = "ours, save", "ours, notice", "ours, periodic", "ours, load"
UNHASHED_FILES, UNHASHED = "ours, files not hashed", "ours, nothing hashed"
JUST_IN_TIME = "Trainer, just in time"


class Local:
    """Everything about one size of state."""

    def __init__(self, size: str, folder: Path, *, cuda: bool) -> None:
        self.shape = scene.shape_of(size)
        for name in ("peers", "floor"):
            (folder / name).mkdir(parents=True)
        self._folder = folder
        self._trainer = scene.make_trainer(self.shape, folder / "peers", cuda=cuda)
        self._place = Workplace(self._trainer, str(folder / "run"), folder / "scratch")
        self._place.listen()
        self._place.save()
        self.bytes = self._place.manifest().total_bytes
        """Of all files of one checkpoint."""

    def close(self) -> None:
        """End the saver process, remove the files."""
        self._place.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def sum_bytes(self) -> int:
        """What the tensors alone come to."""
        return self.shape.parameters * scene.BYTES_A_PARAMETER

    def may_bytes(self) -> float:
        """The largest checkpoint that issue 3 allows."""
        return 1.02 * self.sum_bytes() + FILES_AND_RANKS_BYTES

    def saves(self, rounds: int) -> Table:
        """Savers and loaders of the same state."""
        data = memoryview(torch.randint(0, 256, (self.bytes,), dtype=torch.uint8).numpy())
        others = Peers(self._trainer, self._folder / "peers")
        copy = peers.memory_copy(data)
        cases: dict[str, Case] = {
            FLOOR: _durable(lambda: peers.floor(self._folder / "floor", data)),
            MEMORY: lambda: {"returns": seconds(copy)},
            SAVE: self._saved(nullcontext),
            UNHASHED_FILES: self._saved(ours.unhashed_files),
            UNHASHED: self._saved(ours.unhashed),
            NOTICE: self._noticed,
            STAGE: self._staged,
            LOAD: self._loaded,
            READ: self._read,
            **others.sync(),
            **others.asynchronous(),
            JUST_IN_TIME: others.just_in_time,
        }
        return interleave(cases, rounds)

    def overhead(self, rounds: int, step: Callable[[], object]) -> Table:
        """Ten steps, with the save of every tenth beside them and without."""

        def with_save() -> Mapping[str, float]:
            started = time.perf_counter()
            self._place.stage()
            _repeat(step)
            took = time.perf_counter() - started
            self._place.join()
            self._place.tidy()
            return {"seconds": took}

        plain = lambda: {"seconds": seconds(lambda: _repeat(step))}  # noqa: E731
        return interleave({"with saves": with_save, "without": plain}, rounds)

    def _saved(self, how: Callable[[], Any]) -> Case:
        def run() -> Mapping[str, float]:
            with how():
                took = seconds(self._place.save)
            self._place.tidy()
            return {"returns": took, "durable": took}

        return run

    def _noticed(self) -> Mapping[str, float]:
        took = self._place.notice()
        self._place.tidy()
        return {"returns": took, "durable": took}

    def _staged(self) -> Mapping[str, float]:
        started = time.perf_counter()
        self._place.stage()
        returned = time.perf_counter() - started
        self._place.join()
        durable = time.perf_counter() - started
        self._place.tidy()
        return {"returns": returned, "durable": durable}

    def _loaded(self) -> Mapping[str, float]:
        self._place.save()
        took = seconds(self._place.load)
        self._place.tidy()
        return {"returns": took}

    def _read(self) -> Mapping[str, float]:
        """The same files, one after the other, by one thread."""
        self._place.save()
        storage, directory = self._place.storage, self._place.newest()
        names = [f"{directory}/{entry.path}" for entry in self._place.manifest().files]
        took = seconds(lambda: [_hash(storage.read(name)) for name in names])
        self._place.tidy()
        return {"returns": took}


def _hash(chunks: Iterable[bytes | memoryview]) -> None:
    content = ContentHash()
    for chunk in chunks:
        content.update(chunk)


def wait(step_s: float) -> Callable[[], object]:
    """A step whose thread waits, as for a GPU."""
    return lambda: time.sleep(step_s)


def busy(step_s: float, threads: int) -> Callable[[], object]:
    """A step that keeps `threads` cores busy; so long when nothing else runs."""
    matrix = torch.randn(512, 512)
    torch.set_num_threads(threads)
    alone = min(seconds(lambda: matrix @ matrix) for _ in range(200))
    count = max(1, int(step_s / alone))

    def step() -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    return step


def _repeat(step: Callable[[], object]) -> None:
    for _ in range(STEPS):
        step()


def _durable(act: Callable[[], object]) -> Case:
    def run() -> Mapping[str, float]:
        took = seconds(act)
        return {"returns": took, "durable": took}

    return run
