"""All records of one index, judged by several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from trainer.commands.data_check.index import Record
from trainer.commands.data_check.kinds import Finding
from trainer.commands.data_check.sample import Checked, Judge

_CHUNK = 16
"""Records that a process takes at a time."""

# Set before the processes are forked, so that records and tokenizer are not copied to each.
_job: tuple[Judge, Sequence[Record]] | None = None


def scan(
    judge: Judge, records: Sequence[Record], processes: int, tick: Callable[[int], None]
) -> list[Checked]:
    """What each record is worth, in order. `tick` gets the number of those that are done."""
    global _job
    _job = judge, records
    starts = range(0, len(records), _CHUNK)
    results: list[Checked] = []
    for part in _run(starts, processes):
        results += part
        tick(len(results))
    _job = None
    return sorted(results, key=lambda checked: checked.record)


def _run(starts: range, processes: int) -> Iterator[list[Checked]]:
    if processes <= 1 or len(starts) <= 1:
        yield from map(_chunk, starts)
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(processes, len(starts)), mp_context=fork) as pool:
        for done in as_completed([pool.submit(_chunk, start) for start in starts]):
            yield done.result()


def _chunk(start: int) -> list[Checked]:
    assert _job is not None, "scan sets it before the processes start"
    judge, records = _job
    return [judge.check(record) for record in records[start : start + _CHUNK]]


def repetitions(file: str, checked: Sequence[Checked]) -> Iterator[Finding]:
    """Samples and ids that stood in the file before."""
    seen: dict[str, int] = {}
    named: dict[str, int] = {}
    for one in checked:
        first = seen.setdefault(one.digest, one.record)
        if first != one.record:
            yield Finding("duplicate", file, f"the same as record {first}", one.record)
            continue
        if one.identity is not None:
            owner = named.setdefault(one.identity, one.record)
            if owner != one.record:
                reason = f"`id` {one.identity!r:.60} is that of record {owner}"
                yield Finding("duplicate-id", file, reason, one.record)
