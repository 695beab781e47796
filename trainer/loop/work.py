"""The real work of a rank: import, build, train, and the way out."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.contract import env as names
from orchestrator.contract.spec import Assignment
from orchestrator.errors import InternalError
from trainer.process.outcome import Ending
from trainer.process.rank import Rank

WAY_OUT_S = 2.0
"""Everything after the verdict must be over by then."""


class TrainingWork:
    """Trains the assigned job; one use."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []

    def prepare(self, rank: Rank) -> None:
        """Import the heavy stack while the checkpoint is being chosen."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        import torch

        cpu = not torch.cuda.is_available()
        if cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        from trainer.checkpoint import engine
        from trainer.loop import build

        if cpu:
            engine.without_compiler()
        self._build = build.build
        rank.phase("imports")

    def train(self, rank: Rank, assignment: Assignment) -> Ending:
        """Train to the end of the run, or to a notice; raises outcome.Leave and errors."""
        scratch = Path(os.environ[names.SCRATCH], f"rank-{rank.number}")
        scratch.mkdir()
        trainer = self._build(rank, assignment, scratch, self._closers)
        start = assignment.start
        resume = start.directory if start.kind == "checkpoint" else None
        trainer.train(resume_from_checkpoint=resume)
        raise InternalError("the training loop ended by itself")

    def close(self) -> None:
        """Close trackers, process group and files, within WAY_OUT_S."""

        def run_all() -> None:
            for closer in self._closers:
                with suppress(Exception):
                    closer()

        # A thread, because destroying a group whose peer hangs may hang as well.
        thread = threading.Thread(target=run_all, name="qvl-way-out", daemon=True)
        thread.start()
        thread.join(WAY_OUT_S)
