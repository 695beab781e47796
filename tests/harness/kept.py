"""Run directories that an earlier commit has written, and that commit's code.

`tests/data/<commit>.tar.xz` holds what that commit's own `tests.harness.runs.Bench` made at
/tmp/qvl-kept/<commit>: `names.json` names the runs by what happened to them, each of the job of
`Bench.job` (`step_s=0.05`). finished: a notice at step 7, then on to the end. preempted, killed:
left there, after a notice or a SIGKILL. unfenced: preempted, and a second start was killed between
its claim and its fence. cancelled: at step 3.

`<commit>-training.tar.xz`: a real training of `TrainingBench.job` with six steps, left after a
notice at step 1; the model and the pictures are made anew where it is unpacked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.controller.run import open_entry
from orchestrator.registry.rebuild import read_entry
from orchestrator.registry.store import Registry
from orchestrator.storage.opening import open_storage
from tests.harness.runs import ROOT, Driven

COMMIT = "f913d38"
OLD_FAKE = "trainer.fake"
"""The fake trainer's module in that commit's code."""
ARCHIVE = ROOT / "tests" / "data" / f"{COMMIT}.tar.xz"
TRAINED_AT = f"/tmp/qvl-kept/{COMMIT}t"
TRAINING = ROOT / "tests" / "data" / f"{COMMIT}-training.tar.xz"
MADE_AT = f"/tmp/qvl-kept/{COMMIT}"


class Kept:
    """The kept runs, unpacked below `folder`; the run directories at `uri`, if that is given."""

    def __init__(self, folder: Path, uri: str | None = None, archive_file: Path = ARCHIVE) -> None:
        with tarfile.open(archive_file) as archive:
            archive.extractall(folder, filter="data")
        self.names: dict[str, str] = json.loads((folder / "names.json").read_text())
        self.registry = Registry(folder / "state")
        self._folder = folder
        self._root = uri or str(folder / "runs")
        for path in (p for p in (folder / "runs").rglob("*.json") if _names_places(p)):
            path.write_bytes(self._moved(path.read_bytes()))
        if uri is not None:
            storage = open_storage(uri)
            for path in (p for p in (folder / "runs").rglob("*") if p.is_file()):
                storage.put(str(path.relative_to(folder / "runs")), path.read_bytes())

    def run(self, name: str) -> Driven:
        """One of them, adopted."""
        entry = read_entry(f"{self._root}/{self.names[name]}")
        self.registry.add(entry)
        return Driven(open_entry(self.registry, entry, SystemClock()))

    def _moved(self, data: bytes) -> bytes:
        """Early records bear no checksum: where they lie may be written anew."""
        text = data.decode().replace(TRAINED_AT, MADE_AT)
        text = text.replace(f'"{OLD_FAKE}"', '"trainer.testing.fake"')
        text = text.replace(f"{MADE_AT}/runs", self._root)
        return (
            text.replace(MADE_AT, str(self._folder)).replace(_python(text), sys.executable).encode()
        )


def _python(text: str) -> str:
    """The interpreter that a submission names."""
    value = json.loads(text)
    return str((value.get("spec") or {}).get("python") or "no interpreter")


def _names_places(path: Path) -> bool:
    """Not a manifest: what it says of places is compared with nothing, and is checksummed."""
    return path.parent.name == "submissions" or path.name in ("resolved.json", "start.json")


def old_code(folder: Path) -> Path:
    """The code of that commit; skips where the history is not at hand."""
    made = subprocess.run(
        ["git", "archive", COMMIT, "orchestrator", "trainer"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"no commit {COMMIT} in this checkout")
    folder.mkdir()
    (folder / "code.tar").write_bytes(made.stdout)
    with tarfile.open(folder / "code.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


def interpreter(path: Path, code: Path) -> Path:
    """A program that is this interpreter with other code of ours."""
    path.write_text(f'#!/bin/sh\nPYTHONPATH={code} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path
