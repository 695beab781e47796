"""Trackers of rank 0: one run over all attempts. One that fails is given up, nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import Assignment
from orchestrator.run_directory import private_folder
from orchestrator.storage.protocol import Storage
from trainer.tracking.wandb import WeightsAndBiases


class Tracker(Protocol):
    """Takes what is known of each step."""

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record values of one step; names that stand for None are left out."""

    def close(self, *, interrupted: bool) -> None:
        """Write what is left. interrupted: the run goes on in another attempt."""


def wanted(job: ResolvedJob) -> frozenset[str]:
    """Names of the trackers that the job asks for."""
    given = job.training.get("report_to", "tensorboard")
    return frozenset([given] if isinstance(given, str) else given) - {"none"}


def open_trackers(
    storage: Storage, assignment: Assignment, warn: Callable[[str, str], None]
) -> tuple[Tracker, ...]:
    """Those that the job asks for. warn: takes a key and a text."""
    names, found = wanted(assignment.job), list[Tracker]()
    if not names:
        return ()
    folder = board_folder(storage, assignment.run_id, lambda text: warn("board", text))
    if "tensorboard" in names:
        first = assignment.start.step + 1
        found.append(TensorBoard(folder, first, lambda text: warn("tracker", text)))
    if "wandb" in names:
        config = {
            "job": to_json(dict(assignment.job.training)),
            "lora": to_json(assignment.job.lora),
        }
        found.append(
            WeightsAndBiases(
                folder.parent, assignment.run_id, config, lambda text: warn("wandb", text)
            )
        )
    return tuple(found)


def board_folder(storage: Storage, run_id: str, warn: Callable[[str], None]) -> Path:
    """Where trackers write: in the run directory if that lies on a file system."""
    local = storage.local_path("tensorboard")
    if local is not None:
        return local
    folder = private_folder.create(None, run_id, "tensorboard")
    warn(
        f"trackers cannot write to {storage.uri}: their files are in {folder} on this node only; "
        f"every step stands in the run directory (`qvl-orchestrate metrics {run_id}`)"
    )
    return folder


class TensorBoard:
    """Scalars of rank 0; silent if TensorBoard is not installed or there is no local folder.

    first_step: steps from here on replace what an earlier attempt wrote
    """

    def __init__(self, folder: Path | None, first_step: int, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._guarded(lambda: self._open(SummaryWriter, folder, first_step))

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record values of one step; names that stand for None are left out."""

        def write() -> None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)

        if self._writer is not None:
            self._guarded(write)

    def close(self, *, interrupted: bool) -> None:  # noqa: ARG002 - its files hold no state
        """Write what is left."""
        if self._writer is not None:
            self._guarded(self._writer.close)

    def _open(self, factory: Any, folder: Path, first_step: int) -> None:
        self._writer = factory(str(folder), purge_step=first_step)

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as fault:  # noqa: BLE001 - a tracker never stops a run
            self._writer = None
            self._warn(f"TensorBoard is off: {fault}")
