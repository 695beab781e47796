"""The writer is killed, or the disk fails it, at every single system call of its work.

QVL_FAULTS=all: every call and every error; else every call that changes what a killed process
leaves, and a part of the errors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import scene
from tests.faults.traced import Call, Outcome, Writer
from tests.faults.writer import UNEXPECTED

ALL = os.environ.get("QVL_FAULTS") == "all"
PART = 1 if ALL else 8
"""Of the calls that may fail, every PART-th is made to."""
ONCE_AND_LASTING = ("", "+")
"""As strace writes that only this call fails, or all like it from this one on."""
NO_LINKS = "link:error=EPERM"
"""As a file system without hard links answers."""
WORKS = [*scene.WORK, "save without links"]


@dataclass
class Stage:
    """A run directory that is made anew for every fault."""

    writer: Writer
    folder: Path
    work: str
    always: tuple[str, ...]
    calls: list[Call]

    def strike(self, *inject: str) -> Outcome:
        root = self.folder / "run"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.folder / "prepared", root)
        return self.writer.run(self.work, root, [*self.always, *inject])

    def assert_sound(self, outcome: Outcome) -> None:
        scene.assert_sound(self.work, self.folder / "run", scene.Promised(outcome.said))


@pytest.fixture(params=WORKS)
def stage(request: pytest.FixtureRequest, writer: Writer, fast_folder: Path) -> Stage:
    work, _, without = request.param.partition(" ")
    always = (NO_LINKS,) if without else ()
    scene.prepare(work, fast_folder / "prepared")
    shutil.copytree(fast_folder / "prepared", fast_folder / "run")
    calls = writer.calls(work, fast_folder / "run", fast_folder / "log", always)
    assert len(calls) > 20
    return Stage(writer, fast_folder, work, always, calls)


def faults(stage: Stage, points: list[tuple[str, tuple[str, ...]]], *, killed: bool) -> list[str]:
    """What is wrong after each of them."""
    found = []
    for name, inject in points:
        outcome = stage.strike(*inject)
        try:
            assert outcome.killed == killed, "the fault was not met"
            assert outcome.status != UNEXPECTED << 8, outcome.error
            stage.assert_sound(outcome)
        except Exception as fault:
            found.append(f"{name}: {type(fault).__name__}: {fault}\n    {outcome}")
    return found


def test_undisturbed(stage: Stage) -> None:
    outcome = stage.strike()
    assert (outcome.status, outcome.error) == (0, None)
    assert outcome.said
    stage.assert_sound(outcome)


def test_killed_at_every_call(stage: Stage) -> None:
    points = [
        (str(call), (f"{call.name}:signal=SIGKILL:when={call.number}",))
        for call in stage.calls
        if ALL or call.shows
    ]
    found = faults(stage, points, killed=True)
    assert not found, report(found, points)


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EROFS", "EIO"])
def test_an_error_at_every_call(stage: Stage, error: str) -> None:
    able = [call for call in stage.calls if may_fail(call, error)]
    points = [
        (f"{call} {error}{lasting}", (f"{call.name}:error={error}:when={call.number}{lasting}",))
        for number, call in enumerate(able[:: PART if len(able) > 20 else 1])
        for lasting in (ONCE_AND_LASTING if ALL else ONCE_AND_LASTING[number % 2 :][:1])
    ]
    found = faults(stage, points, killed=False)
    assert not found, report(found, points)


def report(found: list[str], points: Sequence[object]) -> str:
    return "\n".join([f"{len(found)} of {len(points)} faults", *found[:5]])


def may_fail(call: Call, error: str) -> bool:
    if call.rest.startswith(" EPERM"):
        return False  # a link that always fails cannot fail in a second way
    if error == "EIO":
        return True
    if error == "EROFS":
        return call.changes and call.name not in ("write", "fsync")
    return call.allocates
