"""The floor, and what others offer for the same state.

Each saver is called as its users call it. `returns` is when it gives control back, `durable`
when all that it wrote is synced too, which none of the peers but the floor does by itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from transformers import TrainerControl
from transformers.trainer_jit_checkpoint import CheckpointManager, JITCheckpointCallback

BLOCK = 8 << 20
_CHANGED = (
    "_copy_recovery_script",
    "module_state_dict",
    "_get_shared_params",
    "_get_buffer_names",
)
"""What trainer.checkpoint.engine.install puts over DeepSpeed's own."""


def floor(folder: Path, data: memoryview) -> None:
    """The same bytes as one file: written, synced, renamed, the directory synced."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    file = os.open(folder / "floor.tmp", flags, 0o600)
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        while block:
            block = block[os.write(file, block) :]
    os.fsync(file)
    os.close(file)
    (folder / "floor.tmp").rename(folder / "floor")
    _sync(folder)


def memory_copy(data: memoryview) -> Callable[[], None]:
    """A plain copy of the same bytes, into memory that is there already."""
    source = torch.frombuffer(data, dtype=torch.uint8)
    target = source.clone()
    return lambda: target.copy_(source)


class Peers:
    """Savers of others, on the trainer's state.

    folder: for what they write; emptied after each save
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self._trainer = trainer
        self._folder = folder
        trainer.args.output_dir = str(folder)
        self._cuda = trainer.args.device.type == "cuda"
        self._state = state_of(trainer)

    def sync(self) -> dict[str, Callable[[], Mapping[str, float]]]:
        """Those that return when they have written."""
        cases: dict[str, Callable[[], None]] = {
            "Trainer._save_checkpoint": self._trainer_save,
            "accelerate save_state": self._accelerate,
            "DCP save": self._dcp,
            "torch.save + fsync + rename": self._torch_save,
        }
        if importlib.util.find_spec("lightning_fabric") is not None:
            cases["Lightning _atomic_save"] = self._lightning
        return {name: self._timed(save) for name, save in cases.items()}

    def asynchronous(self) -> dict[str, Callable[[], Mapping[str, float]]]:
        """Those that go on beside training."""
        return {
            "DCP async_save (thread)": self._dcp_async(AsyncCheckpointerType.THREAD),
            "DCP async_save (process)": self._dcp_async(AsyncCheckpointerType.PROCESS),
        }

    def just_in_time(self) -> Mapping[str, float]:
        """SIGTERM to the Trainer's own checkpoint for it; its callbacks called every ms."""
        callback, control = JITCheckpointCallback(), TrainerControl()
        callback.trainer, callback.jit_manager = self._trainer, CheckpointManager(self._trainer)
        before = signal.getsignal(signal.SIGTERM)
        with self._their_engine():
            callback.jit_manager.setup_signal_handler()
            started = time.perf_counter()
            os.kill(os.getpid(), signal.SIGTERM)
            while not control.should_training_stop:
                callback.on_step_begin(self._trainer.args, self._trainer.state, control)
                time.sleep(0.001)
        returned = time.perf_counter() - started
        signal.signal(signal.SIGTERM, before)
        return self._finished(started, returned)

    def _timed(self, save: Callable[[], None]) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            with self._their_engine():
                started = time.perf_counter()
                save()
                returned = time.perf_counter() - started
            return self._finished(started, returned)

        return run

    def _dcp_async(self, kind: AsyncCheckpointerType) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            started = time.perf_counter()
            future = dcp.async_save(
                self._state,
                checkpoint_id=str(self._folder / "dcp"),
                async_checkpointer_type=kind,
            )
            returned = time.perf_counter() - started
            future.result()
            return self._finished(started, returned)

        return run

    def _finished(self, started: float, returned: float) -> Mapping[str, float]:
        sync_below(self._folder)
        durable = time.perf_counter() - started
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"returns": returned, "durable": durable}

    def _trainer_save(self) -> None:
        self._trainer._save_checkpoint(self._trainer.model, None)

    def _accelerate(self) -> None:
        self._trainer.accelerator.save_state(
            str(self._folder / "state"), exclude_frozen_parameters=True
        )

    def _dcp(self) -> None:
        dcp.save(self._state, checkpoint_id=str(self._folder / "dcp"))

    def _torch_save(self) -> None:
        with (self._folder / "tmp").open("wb") as file:
            torch.save(self._state, file)
            file.flush()
            os.fsync(file.fileno())
        (self._folder / "tmp").rename(self._folder / "state.pt")
        _sync(self._folder)

    def _lightning(self) -> None:
        from lightning_fabric.utilities.cloud_io import _atomic_save

        _atomic_save(self._state, self._folder / "state.ckpt")

    @contextmanager
    def _their_engine(self) -> Iterator[None]:
        """DeepSpeed's own checkpoint engine in the place of ours, and torch's CRC on."""
        engine = self._trainer.deepspeed
        ours, engine.checkpoint_engine = engine.checkpoint_engine, TorchCheckpointEngine()
        changes = {name: engine.__dict__.pop(name) for name in _CHANGED if name in vars(engine)}
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(True)
        try:
            yield
        finally:
            torch.serialization.set_crc32_options(before)
            engine.checkpoint_engine = ours
            vars(engine).update(changes)


def state_of(trainer: Any) -> dict[str, Any]:
    """The tensors of our checkpoint, for savers of plain dictionaries; adapter twice, as ours."""
    adapter = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    optimizer = trainer.deepspeed.optimizer
    moments = {
        f"{number}.{name}": value
        for number, state in enumerate(optimizer.optimizer.state.values())
        for name, value in state.items()
    }
    masters = {str(i): p.detach() for i, p in enumerate(optimizer.single_partition_of_fp32_groups)}
    copies = {name: value.clone() for name, value in adapter.items()}
    return {"adapter": adapter, "module": copies, "masters": masters, "moments": moments}


def sync_below(folder: Path) -> None:
    """Make all files and folders below durable."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
