"""Every state that a power loss may leave of recorded work, whatever was not yet synced.

QVL_FAULTS=all: all of them, and more random ones; else a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import scene
from tests.faults.crashstates import Disk, materialise
from tests.faults.traced import Call, Writer, decoded, parse

ALL = os.environ.get("QVL_FAULTS") == "all"
DRAWS = 10 if ALL else 1
"""Random states after each call, beside the systematic ones."""
MOST = 10**6 if ALL else 80
"""States that are looked at of each work."""

State = dict[str, bytes | None]


@dataclass(frozen=True)
class Left:
    """One state, after which call, and what had been promised by then."""

    after: str
    state: State
    said: tuple[str, ...]


def told(call: Call) -> str | None:
    """What the writer promised by this call."""
    if call.name != "sendto":
        return None
    text = call.arguments.split('"')[1]
    said = json.loads(decoded(text)).get("said")
    return None if said is None else str(said)


def left_over(disk: Disk, calls: Sequence[Call]) -> Iterator[Left]:
    """States that differ, in order."""
    chance, seen, said = random.Random(7), set(), ()
    for call in calls:
        if promise := told(call):
            said = (*said, promise)
        elif not disk.apply(call):
            continue
        for state in disk.states(chance, DRAWS):
            key = hashlib.sha256(repr((sorted(state.items()), said)).encode()).digest()
            if key not in seen:
                seen.add(key)
                yield Left(str(call), state, said)


def record(
    writer: Writer, folder: Path, work: str, inject: Sequence[str] = ()
) -> tuple[Disk, list[Call]]:
    root = folder / "run"
    shutil.rmtree(root, ignore_errors=True)
    scene.prepare(work, root)
    disk = Disk(root)
    writer.run(work, root, inject, folder / "log")
    return disk, parse(folder / "log")


def unsound(work: str, folder: Path, found: Sequence[Left]) -> list[str]:
    faults = []
    for number, left in enumerate(found):
        root = folder / f"after-{number}"
        root.mkdir(mode=0o700)
        materialise(left.state, folder / "run", root)
        try:
            scene.assert_sound(work, root, scene.Promised(left.said))
        except Exception as fault:
            faults.append(f"after {left.after}: {type(fault).__name__}: {fault} {left.said}")
        shutil.rmtree(root)
    return faults


def some(found: list[Left], most: int) -> list[Left]:
    """At equal distances, the last among them."""
    return found[:: -max(1, -(-len(found) // most))]


@pytest.mark.parametrize("work", [w for w in scene.WORK if w != "load"])
@pytest.mark.parametrize("inject", [(), ("link:error=EPERM",)], ids=["", "without links"])
def test_power_is_lost_at_any_moment(
    writer: Writer, fast_folder: Path, work: str, inject: tuple[str, ...]
) -> None:
    disk, calls = record(writer, fast_folder, work, inject)
    found = list(left_over(disk, calls))
    assert len(found) > 5
    assert found[-1].said
    faults = unsound(work, fast_folder, some(found, MOST))
    assert not faults, "\n".join([f"{len(faults)} of {len(found)} states", *faults[:5]])


def test_power_is_lost_after_a_sync_has_failed(writer: Writer, fast_folder: Path) -> None:
    """What a failed fsync leaves is never believed, whatever the next one says."""
    _, calls = record(writer, fast_folder, "save")
    syncs = [call for call in calls if call.name == "fsync"]
    assert len(syncs) > 20
    faults = []
    for sync in syncs if ALL else syncs[-12:]:
        rule = f"fsync:error=EIO:when={sync.number}"
        disk, struck = record(writer, fast_folder, "save", [rule])
        found = list(left_over(disk, struck))
        faults += [f"{sync}: {f}" for f in unsound("save", fast_folder, some(found, MOST // 10))]
        last = [left for left in found if left.said == found[-1].said]
        faults += [f"{sync}: {f}" for f in unsound("save", fast_folder, last)]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:5]])
