"""DeepSpeed: the only module that imports it.

Its checkpoint files pass through `StreamingEngine`, put at the engine's own seam
`engine.checkpoint_engine`: saved tensors stream into the run's storage and are hashed on
the way; loading unpickles nothing but an explicit list of types.
"""

from __future__ import annotations

import copy
import operator
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import deepspeed
import torch
from blake3 import blake3
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import _weights_only_unpickler as unpickler
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from orchestrator.contract.regular import open_regular
from orchestrator.storage.protocol import Sink
from trainer.checkpoint.shards import FileWriter

Refused: type[Exception] = unpickler.UnpicklingError  # type: ignore[attr-defined]
"""What a load raises that meets a type which is not on the list."""


def _stage(owner: object, name: str) -> Any:
    """In the place of `getattr`, by which Python 3.11.2 and its neighbours pickle enums."""
    if owner is not ZeroStageEnum or name not in _STAGES:
        raise Refused(f"getattr of {owner!r} and {name!r}")
    return _STAGES[name]


_STAGES: dict[str, Any] = dict(ZeroStageEnum.__members__)
_ALLOWED: list[Any] = [
    *(LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address),
    (_stage, "builtins.getattr"),
]
"""See contract.pickles."""
UNCHANGING = (ZeroStageEnum, fragment_address)
"""Types in a state dict whose values stay as they are."""
_QUANT_STATE = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$")
"""Names under which bitsandbytes keeps the frozen weights' quantization state."""


def without_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives on a CPU.

    Call before the process group is made. Results are the same without them.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class StreamingEngine(CheckpointEngine):  # type: ignore[misc]
    """What DeepSpeed writes and reads, tensor file by tensor file. Saving never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "qvl"
        self.loaded_names: frozenset[str] = frozenset()
        """Model tensors of the last load."""
        self._writer: FileWriter | None = None
        self._folder = Path()

    def aim(self, writer: FileWriter, folder: Path) -> None:
        """Send what DeepSpeed saves below `folder` to `writer`."""
        self._writer, self._folder = writer, folder

    def create(self, info: object) -> None:
        """Nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders exist only as parts of names."""

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Stream one file."""
        assert self._writer is not None
        name = Path(path).relative_to(self._folder).as_posix()
        self._writer.dump(name, state_dict, dump_tensors)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file, allowing no types but the listed ones."""
        with torch.serialization.safe_globals(list(_ALLOWED)):
            state = torch.load(path, map_location=map_location, weights_only=True)
        if path.endswith("model_states.pt"):
            self.loaded_names = frozenset(state["module"])
        return state

    def commit(self, info: object) -> bool:  # noqa: ARG002 - DeepSpeed's signature
        """DeepSpeed's idea of complete is not ours: see trainer.checkpoint.commit."""
        return True


def dump_tensors(value: object, sink: Sink) -> None:
    """Write a file that torch.load reads, whatever Python either side runs on.

    Without torch's own CRC-32, which costs more than the disk and nobody compares: every file
    is hashed by whoever stores it.
    """
    torch.serialization.set_crc32_options(compute_crc32=False)
    torch.save(plain(value), cast(IO[bytes], sink))


def plain(value: Any) -> Any:
    """The same with the plain numbers of its enums: how those are pickled differs by Python.

    Whatever holds none is given back itself, and stays shared where it was.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        changed = {k: new for k, old in value.items() if (new := plain(old)) is not old}
        if not changed:
            return value
        same = copy.copy(value)
        same.update(changed)
        return same
    if type(value) in (list, tuple):
        items = [plain(item) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    return value


def install(engine: Any) -> StreamingEngine:
    """Put our checkpoint engine into a DeepSpeed engine."""
    engine.checkpoint_engine = StreamingEngine()
    engine._copy_recovery_script = lambda _path: None
    # Two collectives a save, to compare the name of a folder that all ranks make of the step.
    engine.checkpoint_tag_validation_enabled = lambda: False
    engine.module_state_dict = _ModuleState(engine)
    # Walks over thousands of modules, always with the same end; a save waits for each.
    engine._get_shared_params = cache(engine._get_shared_params)
    engine._get_buffer_names = cache(engine._get_buffer_names)
    return engine.checkpoint_engine  # type: ignore[no-any-return]


def save(engine: Any, writer: FileWriter, scratch: Path) -> None:
    """Write this rank's DeepSpeed files. Collective; errors are kept in `writer`.

    scratch: local folder of this rank alone, usually never created; what DeepSpeed puts
    there by itself (offloaded tensors) is taken over.
    """
    engine.checkpoint_engine.aim(writer, scratch)
    engine.save_checkpoint(str(scratch), save_latest=False, exclude_frozen_parameters=True)
    for file in sorted(f for f in scratch.rglob("*") if f.is_file()):
        writer.write(file.relative_to(scratch).as_posix(), _copier(file))
    shutil.rmtree(scratch, ignore_errors=True)
    if engine.global_rank == 0:
        writer.put("latest", f"global_step{engine.global_steps}".encode())


def load(engine: Any, directory: str) -> frozenset[str]:
    """Restore model, optimizer and engine counters; names of the model tensors read."""
    deepspeed_load_checkpoint(engine, directory, load_module_strict=False)
    names: frozenset[str] = engine.checkpoint_engine.loaded_names
    return names


def state_digest(engine: Any) -> str:
    """`blake3:<hex>` of this rank's optimizer state and fp32 master weights."""
    return digest_of(state_of(engine))


def state_of(engine: Any) -> list[tuple[str, Any]]:
    """What `state_digest` is made of, by reference."""
    return list(_leaves(engine.optimizer.state_dict(), ""))


def digest_of(state: list[tuple[str, Any]]) -> str:
    """The digest; mostly outside of the interpreter, so that a thread may make it aside."""
    content = blake3(max_threads=blake3.AUTO)
    for path, value in state:
        content.update(f"{path}\0".encode())
        if isinstance(value, torch.Tensor):
            tensor = value.detach().reshape(-1).cpu().contiguous()
            content.update(f"{value.dtype}\0{tuple(value.shape)}\0".encode())
            content.update(tensor.view(torch.uint8).numpy().data)
        else:
            content.update(repr(value).encode())
    return f"blake3:{content.hexdigest()}"


class _ModuleState:
    """In the place of `engine.module_state_dict`: what is saved of the model.

    Which tensors those are is asked but once. Asking has the quantization state of every
    frozen layer packed, only to be thrown away: the base is loaded anew at every start.
    """

    def __init__(self, engine: Any) -> None:
        self._module = engine.module
        self._ask = engine.module_state_dict
        self._tensors: dict[str, torch.Tensor] | None = None
        """Parameters and buffers of the module, by reference."""

    def __call__(self, *_: object, **how: Any) -> dict[str, torch.Tensor]:
        if self._tensors is not None:
            return {name: tensor.detach() for name, tensor in self._tensors.items()}
        state = {n: value for n, value in self._ask(**how).items() if not _QUANT_STATE.search(n)}
        known = dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        if set(state) <= set(known):
            self._tensors = {name: known[name] for name in state}
        return state


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values in a fixed order; other objects are of no interest."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}/{index}")
    elif isinstance(value, torch.Tensor | int | float | bool | str):
        yield path, value


def _copier(file: Path) -> Callable[[Any], object]:
    def copy(sink: Any) -> None:
        with open_regular(file) as source:
            while chunk := source.read(1 << 20):
                sink.write(chunk)

    return copy
