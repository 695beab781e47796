"""TensorBoard: one run over all attempts. A tracker that fails is given up, nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.storage import copies
from orchestrator.storage.protocol import Storage


def board_folder(storage: Storage, run_id: str, warn: Callable[[str], None]) -> Path:
    """Where TensorBoard writes: in the run directory if that lies on a file system."""
    local = storage.local_path("tensorboard")
    if local is not None:
        return local
    folder = copies.private_folder(None, run_id, "tensorboard")
    warn(
        f"TensorBoard cannot write to {storage.uri}: its files are in {folder} on this node only; "
        "every step stands in the run directory (`qvl-orchestrate metrics`)"
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

    def close(self) -> None:
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
