"""Tables: status rows as cells, and cells as text for a terminal or for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cli import escape


@dataclass(frozen=True, slots=True)
class Column:
    """Title, side, and which columns go first where a terminal is too narrow (0: never)."""

    title: str
    right: bool = False
    leave: int = 0


COLUMNS = (
    Column("run"),
    Column("name", leave=1),
    Column("backend", leave=2),
    Column("GPUs", right=True, leave=4),
    Column("state"),
    Column("attempt", right=True, leave=8),
    Column("preemptions", right=True, leave=7),
    Column("step"),
    Column("loss", right=True, leave=6),
    Column("checkpoint", leave=9),
    Column("lost", right=True, leave=5),
    Column("ETA", right=True, leave=10),
    Column("next", leave=3),
)
STATE, NEXT = 4, 12
STYLES = {
    "RUNNING": "green",
    "SUCCEEDED": "bold green",
    "STOPPING": "yellow",
    "REQUEUED": "yellow",
    "CANCELLING": "yellow",
    "HELD": "bold yellow",
    "UNKNOWN": "magenta",
    "FAILED": "bold red",
}


def status_cells(row: dict[str, Any], public: dict[str, Any], *, symbols: bool) -> list[str]:
    """One cell a column, from a status row and its public form. Pure."""
    step, total, loss = public["step"], public["total_steps"], row.get("loss")
    return [
        public["run_id"],
        public["name"],
        public["backend"],
        str(public["gpus"]),
        public["state"],
        str(public["attempt"]),
        str(public["preemptions"]),
        f"{bar(step, total, symbols=symbols)} {step}/{total or '?'}",
        "-" if loss is None else f"{loss:.4f}",
        _checkpoint(public["last_checkpoint"], symbols),
        str(public["lost_steps"]) + ("" if public.get("lost_exact", True) else "+"),
        duration(public["eta_s"]),
        public["next"] or "",
    ]


def _checkpoint(checkpoint: dict[str, Any] | None, symbols: bool) -> str:
    """`20 ✓ 3 min`: its step, whether it was read back and found right, its age."""
    if checkpoint is None:
        return "-"
    mark = ("✓" if symbols else "ok") if checkpoint["verified"] else "?"
    return f"{checkpoint['step']} {mark} {duration(checkpoint['age_s'])}"


def bar(done: int, total: int, *, symbols: bool, width: int = 8) -> str:
    """A progress bar of `width` characters."""
    full = width * min(done, total) // total if total > 0 else 0
    on, off = ("█", "░") if symbols else ("#", ".")
    return on * full + off * (width - full)


def duration(seconds: float | None) -> str:
    """`4 s`, `3 min`, `2h05`, `4 d`; a dash for None."""
    if seconds is None:
        return "-"
    whole = round(max(0.0, seconds))
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400} d"


def size(count: int) -> str:
    """Bytes with a decimal prefix: `512 B`, `1.5 MB`."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def symbols_shown() -> bool:
    """True if stdout can carry bars and check marks."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def aligned(table: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Rows of equal length as lines of aligned columns; those in `right` flush right.

    Each cell stays on its line: what could leave it is escaped.
    """
    table = [[escape.line(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def plain(body: Sequence[Sequence[str]], more: Sequence[Sequence[str]]) -> str:
    """Status cells as aligned lines, every column; below each row its lines of `more`."""
    right = [i for i, column in enumerate(COLUMNS) if column.right]
    head, *lines = aligned([[c.title for c in COLUMNS], *body], right=right)
    rows = (
        "\n".join([line, *map(escape.line, extra)]) for line, extra in zip(lines, more, strict=True)
    )
    return "\n".join([head, *rows]) + "\n"


def drawn(body: Sequence[Sequence[str]], more: Sequence[Sequence[str]]) -> str:
    """Status cells as a table in colour, in the columns that fit the terminal.

    Below the table stand the lines of `more`, and what comes next where its column had to go.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    body = [[escape.line(cell) for cell in row] for row in body]
    shown = fitting([[c.title for c in COLUMNS], *body], console.width)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for i in shown:
        table.add_column(
            COLUMNS[i].title,
            justify="right" if COLUMNS[i].right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in body:
        style = STYLES.get(row[STATE], "")
        table.add_row(*(Text(row[i], style=style if i == STATE else "") for i in shown))
    with console.capture() as capture:
        console.print(table)
        for row, extra in zip(body, more, strict=True):
            hidden = [f"    next: {row[NEXT]}"] if NEXT not in shown and row[NEXT] else []
            if lines := [*extra, *hidden]:
                shown_lines = "\n".join(map(escape.line, [row[0], *lines]))
                console.print(Text(shown_lines), soft_wrap=True)
    return capture.get()


def fitting(table: Sequence[Sequence[str]], width: int, *, gap: int = 3) -> list[int]:
    """Which COLUMNS of `table` (its first row the titles) fit into `width` characters."""
    needed = [max(map(len, column)) + gap for column in zip(*table, strict=True)]
    chosen = set(range(len(COLUMNS)))
    for i in sorted((i for i in chosen if COLUMNS[i].leave), key=lambda i: COLUMNS[i].leave):
        if sum(needed[i] for i in chosen) - gap <= width:
            break
        chosen.discard(i)
    return sorted(chosen)
