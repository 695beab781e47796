"""DataLoaders that draw nothing from the global random states and survive a notice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from trainer.process.notice import NOTICE_SIGNALS, ignore_in_worker
from trainer.process.rank import die_with


class WatchedLoader(DataLoader[Any]):
    """A DataLoader that shows each batch to `watch` in this process, before anyone else."""

    watch: Callable[[dict[str, Any]], None] | None = None

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if self.watch is not None:
                self.watch(batch)
            yield batch


def make_loader(
    dataset: Any,
    sampler: Any,
    collate: Any,
    args: Any,
    seed: int,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> WatchedLoader:
    """A plain loader, not for accelerate to prepare (it would re-shard and repeat).

    args: the TrainingArguments, for the dataloader_* fields
    seed: of the loader's own generator
    watch: sees each batch first, and may raise
    """
    workers = args.dataloader_num_workers
    loader = WatchedLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_init_worker,
        multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
    )
    loader.watch = watch
    return loader


def _init_worker(_number: int) -> None:
    """The rank decides when its workers end; they die with it."""
    ignore_in_worker()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTICE_SIGNALS)
    die_with(0)
    torch.set_num_threads(1)


class EvaluationSampler:
    """Contiguous parts of the evaluation data, the same number of batches on every rank.

    The last batches of a rank may be empty of new samples; `counts` says how many samples of
    each batch are its own. A batch without any repeats sample 0, so that there is something to
    feed to the model.
    """

    def __init__(self, samples: int, batch: int, rank: int, world_size: int) -> None:
        share = -(-samples // world_size)
        mine = range(min(rank * share, samples), min((rank + 1) * share, samples))
        count = -(-share // batch)
        self._batches = [list(mine[i * batch : (i + 1) * batch]) for i in range(count)]

    @property
    def counts(self) -> list[int]:
        return [len(batch) for batch in self._batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield batch or [0]
