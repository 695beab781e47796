"""SQLite on local disk: which runs there are, and how each looked when last seen."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract.env import STATE_DIR
from orchestrator.domain.nodes import NodeDeath
from orchestrator.errors import NoSuchRun, UsageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, name TEXT NOT NULL, backend TEXT NOT NULL, uri TEXT NOT NULL,
    created_at REAL NOT NULL, gpus INTEGER NOT NULL, final INTEGER NOT NULL DEFAULT 0,
    row TEXT NOT NULL DEFAULT '{}', seen_at REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS runs_by_name ON runs (name, created_at);
CREATE TABLE IF NOT EXISTS node_deaths (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, node TEXT NOT NULL, at REAL NOT NULL,
    error TEXT NOT NULL, forgiven INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, attempt, node)
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One run as the index knows it; `row` is the last status row, `seen_at` its time."""

    run_id: str
    name: str
    backend: str
    uri: str
    """URI of the run directory."""
    created_at: float
    gpus: int
    final: bool = False
    row: dict[str, Any] | None = None
    seen_at: float = 0.0


def default_state_dir() -> Path:
    """QVL_STATE_DIR, or ~/.local/state/qvl-orchestrate (XDG)."""
    if given := os.environ.get(STATE_DIR):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "qvl-orchestrate"


class Registry:
    """Opens a connection per call: cheap, and safe in any thread or process."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._path = state_dir / "runs.sqlite"

    @property
    def state_dir(self) -> Path:
        return self._state_dir

    def add(self, entry: RunEntry) -> None:
        """Enter a run, or correct its entry."""
        with self._open() as db:
            db.execute(
                "INSERT INTO runs (run_id, name, backend, uri, created_at, gpus) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET "
                "name=excluded.name, backend=excluded.backend, uri=excluded.uri, "
                "gpus=excluded.gpus",
                (entry.run_id, entry.name, entry.backend, entry.uri, entry.created_at, entry.gpus),
            )

    def saw(self, run_id: str, row: dict[str, Any], *, final: bool, at: float) -> None:
        """Keep how a run looks now."""
        with self._open() as db:
            db.execute(
                "UPDATE runs SET row=?, final=?, seen_at=? WHERE run_id=?",
                (json.dumps(row), int(final), at, run_id),
            )

    def runs(self) -> list[RunEntry]:
        """All runs, oldest first."""
        with self._open() as db:
            return [_entry(r) for r in db.execute("SELECT * FROM runs ORDER BY created_at, run_id")]

    def find(self, wanted: str) -> RunEntry:
        """A run by id, by the beginning of its id, or by name (the newest of that name).

        Raises NoSuchRun, or UsageError if the beginning fits several runs.
        """
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM runs WHERE run_id=? OR name=? OR substr(run_id, 1, ?)=? "
                "ORDER BY run_id=? DESC, name=? DESC, created_at DESC",
                (wanted, wanted, len(wanted), wanted, wanted, wanted),
            ).fetchall()
        found = [_entry(r) for r in rows]
        if not found:
            raise NoSuchRun(f"no run {wanted!r}", hint="`qvl-orchestrate status` lists all runs")
        exact = found[0].run_id == wanted or found[0].name == wanted
        if len(found) > 1 and not exact:
            names = ", ".join(e.run_id for e in found[:5])
            raise UsageError(f"{wanted!r} fits several runs: {names}")
        return found[0]

    def remove(self, run_id: str) -> None:
        """Forget a run."""
        with self._open() as db:
            db.execute("DELETE FROM runs WHERE run_id=?", (run_id,))

    def add_deaths(self, deaths: Iterable[NodeDeath], since: float = 0.0) -> None:
        """Keep what is new of them; one that was known, or forgiven, stays as it is.

        since: those before, in seconds since the epoch, are of no use any more
        """
        rows = [(d.run_id, d.attempt, d.node, d.at, d.error) for d in deaths if d.at > since]
        if not rows:
            return
        with self._open() as db:
            db.execute("DELETE FROM node_deaths WHERE at <= ?", (since,))
            db.executemany(
                "INSERT OR IGNORE INTO node_deaths (run_id, attempt, node, at, error) "
                "VALUES (?, ?, ?, ?, ?)",
                rows,
            )

    def deaths(self, since: float) -> list[NodeDeath]:
        """Those after `since` (seconds since the epoch) that nobody has forgiven."""
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM node_deaths WHERE at > ? AND forgiven = 0 ORDER BY at", (since,)
            )
            return [
                NodeDeath(
                    node=r["node"],
                    run_id=r["run_id"],
                    attempt=r["attempt"],
                    at=r["at"],
                    error=r["error"],
                )
                for r in rows
            ]

    def forgive(self, nodes: Collection[str]) -> None:
        """Hold what happened so far against these nodes no longer; empty = all."""
        with self._open() as db:
            if not nodes:
                db.execute("UPDATE node_deaths SET forgiven = 1")
            db.executemany(
                "UPDATE node_deaths SET forgiven = 1 WHERE node = ?", [(n,) for n in nodes]
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=10.0)) as db:
            self._path.chmod(0o600)
            db.row_factory = sqlite3.Row
            db.executescript(_SCHEMA)
            with db:
                yield db


def _entry(row: sqlite3.Row) -> RunEntry:
    return RunEntry(
        run_id=row["run_id"],
        name=row["name"],
        backend=row["backend"],
        uri=row["uri"],
        created_at=row["created_at"],
        gpus=row["gpus"],
        final=bool(row["final"]),
        row=json.loads(row["row"]) or None,
        seen_at=row["seen_at"],
    )
