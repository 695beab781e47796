"""The frozen base out of a snapshot, or quantized anew and stored for the attempts to come."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from orchestrator.contract.spec import Assignment
from orchestrator.errors import QvlError, StorageError, UserError
from orchestrator.storage.protocol import Sink
from trainer.base_model.modeling import BasePlan, Loaded, base_tensors
from trainer.base_model.snapshot import Produce, SnapshotCache, look, open_cache
from trainer.base_model.watch import BaseWatch
from trainer.collectives.group import Group
from trainer.process.rank import Rank
from trainer.state import tensorfile

FILE_BYTES = 1 << 30
"""About how much one file of a snapshot holds; ranks verify them side by side."""
NICENESS = 10
CLOSE_S = 0.5


class Base:
    """How this attempt comes to its base.

    recorded: digest of the base that the checkpoint was made with, if it may be compared; after
        `load` from a snapshot, always known
    """

    def __init__(
        self,
        rank: Rank,
        assignment: Assignment,
        group: Group,
        device: torch.device,
        recorded: str | None,
    ) -> None:
        self._rank = rank
        self._assignment = assignment
        self._group = group
        self.recorded = recorded
        self._cache = open_cache(assignment.job, assignment.facts, device.type)
        self._wanted = False
        self._digest: str | None = None
        """Of the base in the snapshot."""

    def load(self, load_from: Callable[[Path | None], Loaded]) -> Loaded:
        """What `load_from` gives for the snapshot's folder, or for None: quantize. Collective."""
        started = time.monotonic()
        folder = self._choose()
        if folder is None:
            return load_from(None)
        try:
            loaded = load_from(folder)
        except (UserError, OSError, SafetensorError) as fault:
            text = f"the snapshot in {folder} cannot be loaded, the base is quantized anew: {fault}"
            self._rank.warn("snapshot", text)
            return load_from(None)
        seconds = round(time.monotonic() - started, 4)
        self.recorded = self._digest
        self._tell("loaded", folder=str(folder), seconds=seconds)
        return loaded

    def keeper(self, loaded: Loaded, base: BaseWatch) -> Keeper | None:
        """Stores the base once a commit stands; None where another rank or nobody does."""
        if self._cache is None or not self._wanted or self._rank.number != 0:
            return None
        plan = loaded.base_plan
        if plan is None:
            return None
        return Keeper(self._rank, self._assignment.run_id, self._cache, loaded.model, plan, base)

    def _choose(self) -> Path | None:
        """The verified snapshot's folder, alike on all ranks."""
        if self._cache is None:
            return None
        found, fault = look(self._cache, self._group.rank, self._group.size)
        if found and not fault and self.recorded not in (None, found.base_digest):
            fault = "it was made from another base than the checkpoint"
        mine = {"folder": found.folder if found else None, "fault": fault}
        replies = self._group.gather(mine)
        faults = [reply["fault"] for reply in replies if reply["fault"]]
        if found and not faults and all(reply["folder"] == found.folder for reply in replies):
            self._touch(self._cache)
            self._digest = found.base_digest
            return self._cache.place(found)
        self._wanted = True
        if faults and self._rank.number == 0:
            self._refuse(self._cache, faults[0])
        return None

    def _refuse(self, cache: SnapshotCache, fault: str) -> None:
        text = f"the snapshot of the base is not used, it is quantized anew: {fault}"
        self._rank.warn("snapshot", text)
        try:
            cache.discard()
        except StorageError as again:
            self._rank.warn("snapshot-rm", f"the snapshot cannot be removed: {again.message}")

    def _touch(self, cache: SnapshotCache) -> None:
        if self._rank.number != 0:
            return
        try:
            cache.touch()
        except StorageError as fault:
            self._rank.warn("snapshot", f"the snapshot's use cannot be noted: {fault.message}")

    def _tell(self, how: str, **data: Any) -> None:
        if self._rank.number == 0:
            self._rank.event("base", how=how, **data)


class Keeper:
    """Stores the base in a thread of low priority, once; nothing waits for it."""

    def __init__(
        self,
        rank: Rank,
        run_id: str,
        cache: SnapshotCache,
        model: torch.nn.Module,
        plan: BasePlan,
        base: BaseWatch,
    ) -> None:
        self._rank = rank
        self._run_id = run_id
        self._cache = cache
        self._model = model
        self._plan = plan
        self._base = base
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """A commit stands: begin. Later calls do nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qvl-snapshot", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Give up what is not finished."""
        self._closed = True
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        started = time.monotonic()
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            digest, _ = self._base.results()
            files = base_files(base_tensors(self._model, self._plan), self._plan, self._check)
            stored = self._cache.store(files, digest or "", self._run_id)
        except _GivenUp:
            return
        except (QvlError, OSError, RuntimeError, ValueError) as fault:
            self._rank.warn("snapshot", f"the quantized base could not be stored: {fault}")
            return
        if stored is not None:
            seconds = round(time.monotonic() - started, 4)
            self._rank.event("base", how="stored", size_bytes=stored.total_bytes, seconds=seconds)

    def _check(self) -> None:
        """A notice, or the end of the attempt, has other work for the disk."""
        if self._closed or self._rank.board.raised:
            raise _GivenUp


class _GivenUp(Exception):
    """The attempt ends."""


def base_files(
    tensors: Mapping[str, torch.Tensor], plan: BasePlan, check: Callable[[], None]
) -> Iterator[tuple[str, Produce]]:
    """The files of a snapshot, as transformers' from_pretrained reads them.

    check: called between blocks; may raise to give up

    Raises ValueError for a tensor that has lost digits since it was loaded.
    """
    types = {name: plan.dtype(name, tensor) for name, tensor in tensors.items()}
    sizes = {name: tensors[name].numel() * types[name].itemsize for name in sorted(tensors)}
    cuts = _cut(sizes)
    where: dict[str, str] = {}
    for number, names in enumerate(cuts, 1):
        file = f"model-{number:05d}-of-{len(cuts):05d}.safetensors"
        where.update(dict.fromkeys(names, file))
        yield file, _weights({name: tensors[name] for name in names}, types, check)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    for name, data in {**plan.files, SAFE_WEIGHTS_INDEX_NAME: json.dumps(index).encode()}.items():
        yield name, _constant(data)


def _cut(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names for one file each time, until it is full."""
    cuts: list[list[str]] = [[]]
    room = FILE_BYTES
    for name, size in sizes.items():
        if cuts[-1] and size > room:
            cuts.append([])
            room = FILE_BYTES
        cuts[-1].append(name)
        room -= size
    return cuts


def _constant(data: bytes) -> Produce:
    return lambda sink: sink.write(data)


def _weights(
    tensors: Mapping[str, torch.Tensor],
    types: Mapping[str, torch.dtype],
    check: Callable[[], None],
) -> Produce:
    def write(sink: Sink) -> None:
        for block in tensorfile.blocks(tensors, types):
            check()
            sink.write(block)

    return write
