"""How far something has come: one line on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.common import note_over


class Bar:
    """One line on stderr that is written over, if that is a terminal."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            note_over("")

    def show(self, message: Mapping[str, Any]) -> None:
        """`what`, or the name of `file`, and how much of it is done."""
        if not sys.stderr.isatty():
            return
        done, total = int(message.get("done", 0)), max(1, int(message.get("total", 1)))
        what = message.get("what") or Path(str(message.get("file", ""))).name
        filled = 30 * done // total
        note_over(f"{what} [{'#' * filled}{'.' * (30 - filled)}] {done}/{total}")
