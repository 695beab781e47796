"""Weights & Biases: one run over all attempts, offline unless WANDB_MODE says otherwise.

Everything of it happens in a thread of its own: an account, a network or a library that fails
or hangs costs its curves there, never a step.
"""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PROJECT = "qvl-orchestrate"
"""Where WANDB_PROJECT does not say otherwise."""
CLOSE_S = 1.0
"""Longest wait for its end, on a way out of 2 s."""
LIMIT = 10_000
"""Values that wait for it; more are dropped."""


class WeightsAndBiases:
    """Scalars of rank 0.

    folder: where W&B keeps its files
    run_id: of our run and of W&B's: later attempts go on with it
    warn: takes what went wrong, once
    load: gives the `wandb` module
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
        load: Callable[[], Any] = lambda: importlib.import_module("wandb"),
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._config = config
        self._warn = warn
        self._load = load
        self._tasks: queue.Queue[Callable[[Any], object] | None] = queue.Queue(LIMIT)
        self._thread = threading.Thread(target=self._run, name="qvl-wandb", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record values of one step; names that stand for None are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        # Our own step, not W&B's: that one only grows, and a resume may compute a step again.
        self._add(lambda run: run.log({**known, "step": step}))

    def close(self, *, interrupted: bool) -> None:
        """Write what is left; an interrupted run is marked, so that it is not called crashed."""
        if interrupted:
            self._add(lambda run: run.mark_preempting())
        self._add(lambda run: run.finish(exit_code=int(interrupted)))
        self._add(None)
        self._thread.join(CLOSE_S)

    def _add(self, task: Callable[[Any], object] | None) -> None:
        if self._thread.is_alive():
            try:
                self._tasks.put_nowait(task)
            except queue.Full:
                return

    def _run(self) -> None:
        try:
            run = self._open()
            while (task := self._tasks.get()) is not None:
                task(run)
        except Exception as fault:  # noqa: BLE001 - a tracker never stops a run
            self._warn(f"Weights & Biases is off: {type(fault).__name__}: {fault}")

    def _open(self) -> Any:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = self._load()
        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            id=self._run_id,
            name=self._run_id,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(self._folder),
            config=dict(self._config),
            resume="allow",
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        run.define_metric("*", step_metric="step")
        return run
