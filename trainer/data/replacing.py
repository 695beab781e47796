"""Broken samples at run time: replaced by others, the same ones after every resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch.utils.data import Dataset

from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import DataFault, RecordDamaged
from orchestrator.run_directory import records
from orchestrator.storage.protocol import Storage, Taken
from trainer.data.dataset import ChatDataset, Item
from trainer.process.rank import Rank
from trainer.vision_language.formats import DataError

Which: TypeAlias = Literal["train", "eval"]

TRIES = 64
"""Samples that are tried in place of a broken one, before the data set counts as unusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """One broken sample and the one that takes its place, as stored in the run directory."""

    data: Which
    index: int
    by: int
    fault: str
    """Its kind, as in trainer.commands.data_check.kinds."""
    reason: str


class ReplacingDataset(Dataset[Item]):
    """A ChatDataset that gives another sample's tensors for a broken one.

    The other one follows from the broken one's number alone, so it is the same on every rank,
    in every worker and after every resume. Errors travel as items (`fault`), because a
    DataLoader worker cannot raise ours.

    known: replacements of the run so far; they hold even if the sample is readable again, and
        one that cannot be read any more is a fault, because any other would change the run
    """

    def __init__(self, data: ChatDataset, spec: DataSpec, which: Which, known: Mapping[int, int]):
        self.data = data
        self.which: Which = which
        self.replace = spec.policy == "replace"
        self.known = known

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Item:
        """The item of sample `i`; `index` stays `i`, `replaced` tells of a new replacement."""
        known = self.known.get(i)
        try:
            return {**self.data[i if known is None else known], "index": i}
        except DataError as fault:
            if self.replace and known is None:
                return self._instead(i, fault)
            return {"index": i, "fault": fault}

    def _instead(self, i: int, fault: DataError) -> Item:
        for attempt in range(TRIES):
            other = candidate(i, attempt, len(self.data))
            try:
                item = self.data[other]
            except DataError:
                continue
            told = Replaced(
                data=self.which, index=i, by=other, fault=fault.kind, reason=_utf8(fault.reason)
            )
            return {**item, "index": i, "replaced": told}
        return {"index": i, "fault": fault}


def candidate(index: int, attempt: int, samples: int) -> int:
    """The sample that is tried as number `attempt` in place of `index`."""
    digest = hashlib.sha256(f"{index}:{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % samples


class Replacements:
    """The replacements of a run: stored, told once, and counted against the cap.

    Raises DataFault when there are more than `data.max_replaced` for one index file, and the
    DataError of a sample that is not replaced.
    """

    def __init__(self, storage: Storage, rank: Rank, spec: DataSpec, which: Which) -> None:
        self._storage = storage
        self._rank = rank
        self._limit = spec.max_replaced
        self._which: Which = which
        self.known = {r.index: r.by for r in read_replaced(storage) if r.data == which}

    def watch(self, batch: dict[str, Any]) -> None:
        """Take out of a collated batch what is not for the model."""
        fault = batch.pop("fault", None)
        if fault is not None:
            raise fault
        for told in batch.pop("replaced", ()):
            if told.index not in self.known:
                self._record(told)

    def _record(self, told: Replaced) -> None:
        self._store(layout.replaced(told.data, told.index), records.encode(told))
        self.known[told.index] = told.by
        count = sum(r.data == self._which for r in read_replaced(self._storage))
        self._rank.event("replaced", **to_json(told), count=count, limit=self._limit)
        if count > self._limit:
            raise DataFault(
                f"data.{self._which}: {count} samples are broken, data.max_replaced is "
                f"{self._limit}; the last: record {told.index}: {told.reason}",
                hint="`qvl-orchestrate data check` names them all",
            )

    def _store(self, path: str, data: bytes) -> None:
        """Every rank that meets the sample finds the same; a damaged record is put right."""
        taken = self._storage.create(path, data)
        if isinstance(taken, Taken):
            try:
                records.decode(Replaced, taken.by, path)
            except RecordDamaged:
                self._storage.put(path, data)


def _utf8(text: str) -> str:
    """Text that can be stored, whatever a path or a record holds."""
    return text.encode(errors="backslashreplace").decode()


def read_replaced(storage: Storage) -> list[Replaced]:
    """All replacements of a run, in order; records that cannot be read count as none."""
    found = []
    for entry in storage.list(layout.REPLACED):
        try:
            found.append(records.read(storage, Replaced, entry.path))
        except RecordDamaged:
            continue
    return sorted(found, key=lambda r: (r.data, r.index))
