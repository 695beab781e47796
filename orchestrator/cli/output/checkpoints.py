"""Checkpoints as rows, tables and a moving bar."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.cli import escape
from orchestrator.cli.common import note, out
from orchestrator.cli.output.table import aligned, size

if TYPE_CHECKING:
    from orchestrator.cli.output.bar import Bar
    from orchestrator.contract.manifest import CheckpointManifest, FileEntry
    from orchestrator.contract.records import LogRecord
    from orchestrator.controller.run import Run

_MARKS = {True: "verified", False: "DAMAGED", None: ""}


def row(run: Run, record: LogRecord, state: str) -> dict[str, Any]:
    """The public form of one checkpoint."""
    commit = record.commit()
    return {
        "step": commit.step,
        "attempt": record.attempt,
        "path": f"{run.storage.uri}/{commit.directory}",
        "state": state,
        "size_bytes": commit.size_bytes,
        "adapter_sha256": commit.adapter_sha256,
    }


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table of `list` and `verify`."""
    if not rows:
        note("no checkpoint yet")
        return
    table = [["step", "attempt", "state", "", "size", "adapter", "path"]]
    table += [
        [
            str(row["step"]),
            str(row["attempt"]),
            row["state"],
            _MARKS[row.get("verified")],
            size(row["size_bytes"]),
            row["adapter_sha256"][:12],
            row["path"],
        ]
        for row in rows
    ]
    for line in aligned(table, right=(0, 1, 4)):
        out(line)


def sizes(manifest: CheckpointManifest) -> dict[str, int]:
    """Bytes by what they are for."""
    found: Counter[str] = Counter()
    for entry in manifest.files:
        found[_purpose(entry.path)] += entry.size_bytes
    return dict(found.most_common())


def _purpose(path: str) -> str:
    for purpose, mark in (
        ("optimizer", "optim_states"),
        ("weights", "model_states"),
        ("adapter", "adapter_"),
        ("random states", "rng_state"),
        ("parts", "parts/"),
    ):
        if mark in path:
            return purpose
    return "other"


def print_inspection(found: dict[str, Any]) -> None:
    """What `inspect` shows of one checkpoint."""
    manifest = found["manifest"]
    plan = manifest["plan"]
    facts = [
        (
            "step",
            f"{found['step']} (epoch {manifest['epoch']}, {manifest['samples_seen']} samples)",
        ),
        (
            "saved by",
            f"attempt {found['attempt']} at {manifest['created_at']}, {manifest['trigger']}",
        ),
        ("state", found["state"]),
        ("path", found["path"]),
        ("world", f"{manifest['nodes']} x {manifest['gpus_per_node']} GPUs"),
        ("ZeRO", str(manifest["zero_stage"])),
        ("batch", f"{plan['micro']} x {plan['accumulation']} x {plan['world_size']}"),
        ("adapter", f"sha256 {manifest['adapter_sha256']}"),
        ("size", f"{size(manifest_bytes(manifest))} in {len(manifest['files'])} files"),
        *((f"  {name}", size(count)) for name, count in found["sizes"].items()),
        ("contract", f"{len(manifest['facts'])} facts"),
        *((f"  {name}", _short(value)) for name, value in sorted(manifest["facts"].items())),
        *(("extra file", name) for name in found["extra_files"]),
    ]
    for line in aligned([[name, text] for name, text in facts]):
        out(line)


def manifest_bytes(manifest: dict[str, Any]) -> int:
    """Sum over the files of a manifest's public form."""
    return sum(f["size_bytes"] for f in manifest["files"])


def _short(value: Any) -> str:
    text = escape.line(str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


class Reading:
    """A bar on stderr over the bytes of some checkpoints. `add` is for several threads."""

    def __init__(self, bar: Bar, total_bytes: int, what: str) -> None:
        self._bar = bar
        self._total = max(1, total_bytes)
        self._done = 0
        self._lock = threading.Lock()
        self.what = what

    def add(self, file: FileEntry) -> None:
        """One file was read and found right."""
        with self._lock:
            self._done += file.size_bytes
            percent = min(100, 100 * self._done // self._total)
            self._bar.show({"what": self.what, "done": percent, "total": 100})


@contextmanager
def reading(records: Sequence[LogRecord], what: str) -> Iterator[Reading]:
    """For what is about to be read of these checkpoints."""
    from orchestrator.cli.output.bar import Bar

    with Bar() as bar:
        yield Reading(bar, sum(r.commit().size_bytes for r in records), what)
