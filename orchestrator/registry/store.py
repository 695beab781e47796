"""SQLite on local disk: which runs there are, and how each looked when last seen."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contract.env import STATE_DIR
from orchestrator.domain.node_exclusion import NodeDeath
from orchestrator.errors import NoSuchRun, RegistryDamaged, UsageError, UserError
from orchestrator.registry import faults

BUSY_S = 10.0
"""How long another process may hold the registry before that is a fault."""
PRIVATE = 0o600
LISTED = 10
"""Runs that are named where several are meant."""
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
CREATE TABLE IF NOT EXISTS trust (
    run_id TEXT NOT NULL, uri TEXT NOT NULL, owner INTEGER NOT NULL, PRIMARY KEY (run_id, uri)
);
"""
STORE, NOBODY = -1, -2
"""Owners of a run that is trusted on an object store, and of one that nobody has trusted."""


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
    """QVL_STATE_DIR, or ~/.local/state/qvl-orchestrate (XDG). UserError without a home."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        if given := os.environ.get(STATE_DIR):
            return Path(given).expanduser().absolute()
        return Path(base).expanduser() / "qvl-orchestrate"
    except RuntimeError:
        raise UserError(
            "this user has no home folder to keep the registry of runs in",
            hint=f"{STATE_DIR} names a folder for it",
        ) from None


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

    def refreshed(self, found: Iterable[tuple[str, dict[str, Any], bool, float]]) -> None:
        """Keep what readers have found (id, row, final, when); who looked later knows better."""
        with self._open() as db:
            db.executemany(
                "UPDATE runs SET row=?, final=?, seen_at=? WHERE run_id=? AND seen_at<=?",
                [(json.dumps(row), int(final), at, i, at) for i, row, final, at in found],
            )

    def runs(self) -> list[RunEntry]:
        """All runs, oldest first."""
        with self._read() as db:
            return [_entry(r) for r in db.execute("SELECT * FROM runs ORDER BY created_at, run_id")]

    def find(self, wanted: str, *, alone: bool = False, live: bool = False) -> RunEntry:
        """A run by id, by the beginning of its id, or by name (the newest of that name).

        alone: the name must belong to one run only, for what cannot be undone
        live: among runs of one name those that have ended do not count, if others have not

        Raises NoSuchRun, or UsageError if several runs are meant.
        """
        with self._read() as db:
            rows = db.execute(
                "SELECT * FROM runs WHERE run_id=? OR name=? OR substr(run_id, 1, ?)=? "
                "ORDER BY run_id=? DESC, name=? DESC, created_at DESC",
                (wanted, wanted, len(wanted), wanted, wanted, wanted),
            ).fetchall()
        found = [_entry(r) for r in rows]
        if not wanted or not found:
            raise NoSuchRun(f"no run {wanted!r}", hint="`qvl-orchestrate status` lists all runs")
        if found[0].run_id == wanted:
            return found[0]
        if found[0].name != wanted:
            if len(found) > 1:
                raise UsageError(f"{wanted!r} fits several runs: {_listed(found)}")
            return found[0]
        named = [e for e in found if e.name == wanted]
        if live:
            named = [e for e in named if not e.final] or named[:1]
        if alone and len(named) > 1:
            raise UsageError(
                f"{len(named)} runs are called {wanted!r}: {_listed(named)}",
                hint="give the id of the run that you mean",
            )
        return named[0]

    def remove(self, run_id: str) -> None:
        """Forget a run."""
        with self._open() as db:
            db.execute("DELETE FROM runs WHERE run_id=?", (run_id,))
            db.execute("DELETE FROM trust WHERE run_id=?", (run_id,))

    def trust(self, run_id: str, uri: str, owner: int) -> None:
        """Keep whom the user trusts with this run: a uid, STORE or NOBODY."""
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO trust VALUES (?, ?, ?)", (run_id, uri, owner))

    def trusted_owner(self, run_id: str, uri: str) -> int | None:
        """What was last said of it by `trust`; None: nothing."""
        with self._open() as db:
            row = db.execute("SELECT owner FROM trust WHERE run_id=? AND uri=?", (run_id, uri))
            found = row.fetchone()
        return None if found is None else int(found["owner"])

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
        with self._read() as db:
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

    def rebuild(self) -> Path | None:
        """Move a damaged registry aside, so that runs can be entered anew; where to, or None if
        it is whole.
        """
        try:
            with self._read() as db:
                for (fault,) in db.execute("PRAGMA quick_check(1)"):
                    if fault == "ok":
                        return None
        except RegistryDamaged:
            pass
        number = 1 + len(list(self._state_dir.glob(f"{self._path.name}.damaged-*")))
        aside = self._path.with_name(f"{self._path.name}.damaged-{number}")
        with self._said():
            self._path.rename(aside)
        return aside

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """To write: in a folder that is made if it is not there."""
        with self._said():
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._connected(self._path) as db:
                yield db

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """To read: a registry that was never written is empty, and nothing is made."""
        with (
            self._said(),
            self._connected(self._path if self._has_content() else ":memory:") as db,
        ):
            yield db

    def _has_content(self) -> bool:
        """False also for a file that a full disk has kept empty."""
        try:
            return self._path.stat().st_size > 0
        except FileNotFoundError:
            return False

    @contextmanager
    def _connected(self, where: Path | str) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(where, timeout=BUSY_S)) as db:
            if isinstance(where, Path) and stat.S_IMODE(where.stat().st_mode) != PRIVATE:
                where.chmod(PRIVATE)
            db.row_factory = sqlite3.Row
            db.executescript(_SCHEMA)
            with db:
                yield db

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Errors of the file system and of SQLite as what they mean for a person."""
        try:
            yield
        except OSError as fault:
            raise faults.of_files(self._state_dir, fault) from fault
        except sqlite3.Error as fault:
            told = faults.of_database(self._path, fault)
            if told is None:
                raise
            raise told from fault


def _listed(entries: Sequence[RunEntry]) -> str:
    """Their ids, with the state of each where it is known."""
    shown = [
        f"{e.run_id} ({e.row['state']})" if e.row and "state" in e.row else e.run_id
        for e in entries[:LISTED]
    ]
    more = len(entries) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _entry(row: sqlite3.Row) -> RunEntry:
    return RunEntry(
        run_id=row["run_id"],
        name=row["name"],
        backend=row["backend"],
        uri=row["uri"],
        created_at=row["created_at"],
        gpus=row["gpus"],
        final=bool(row["final"]),
        row=_row(row["row"]),
        seen_at=row["seen_at"],
    )


def _row(text: str) -> dict[str, Any] | None:
    """A status row; one that is damaged is not known."""
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row else None
