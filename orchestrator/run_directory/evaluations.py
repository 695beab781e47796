"""What the evaluations of a run gave, from the events of its attempts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.contract import layout
from orchestrator.run_directory.segments import read_segments
from orchestrator.storage.protocol import Storage

_EVENTS = re.compile(r"(attempts/\d+/events/[^/]+)/\d+\.jsonl")


def loss_of(data: Mapping[str, Any]) -> tuple[int, float] | None:
    """(step, loss) of an `evaluated` event's data; None where the loss is no number."""
    step, metrics = data.get("step"), data.get("metrics")
    loss = metrics.get("eval_loss") if isinstance(metrics, Mapping) else None
    if not isinstance(step, int) or isinstance(loss, bool) or not isinstance(loss, int | float):
        return None
    return step, float(loss)


def read_evaluations(storage: Storage) -> dict[int, float]:
    """Loss on the held-out data by step; the newest attempt's word counts. Raises StorageError."""
    names = (_EVENTS.fullmatch(e.path) for e in storage.list(layout.ATTEMPTS, deep=True))
    found: dict[int, float] = {}
    for folder in sorted({name[1] for name in names if name}):
        for _, line in read_segments(storage, f"{folder}/"):
            if isinstance(line, dict) and line.get("kind") == "evaluated":
                known = loss_of(line.get("data") or {})
                found.update([known] if known else [])
    return found
