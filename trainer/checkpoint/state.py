"""The state of a Trainer as files that plain transformers and PEFT can read, and its copy in host
memory, which is all that a save beside training has the loop wait for.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model_state_dict

from orchestrator.contract.jsonio import pretty
from orchestrator.contract.manifest import Trigger
from orchestrator.contract.regular import read_regular
from orchestrator.storage.hashing import sha256
from orchestrator.storage.protocol import Sink
from trainer.base_model.modeling import tensors_digest, trainable_parameters
from trainer.base_model.watch import BaseWatch
from trainer.checkpoint import engine
from trainer.checkpoint.async_saver import Describe
from trainer.checkpoint.commit import needed
from trainer.checkpoint.save_result import Digests, Head
from trainer.checkpoint.shards import FileWriter
from trainer.state import rng, tensorfile
from trainer.state.window import LossState

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def loss_file(rank: int) -> str:
    """Name of the file with a rank's LossState."""
    return f"qvl_loss_{rank}.json"


class Content(NamedTuple):
    """The state in memory that is hashed; a tuple, so that host buffers copy what is in it."""

    optimizer: Any
    """Leaves of the optimizer's state and the fp32 master weights, with their paths."""
    trainable: Mapping[str, torch.Tensor]
    adapter: Mapping[str, torch.Tensor]
    """By PEFT's names. Like `trainable` empty but on rank 0."""
    rng: rng.RngState

    def hashes(self) -> Hashes:
        """Mostly outside of the interpreter, so that a thread may make them aside."""
        state, random = engine.digest_of(self.optimizer), rng.digest(self.rng)
        if not self.adapter:
            return Hashes(state, random)
        return Hashes(
            state,
            random,
            adapter_digest=tensors_digest(self.trainable),
            adapter_sha256=sha256(tensorfile.blocks(self.adapter)),
            needed_bytes=needed((t.numel(), t.element_size()) for t in self.adapter.values()),
        )


@dataclass(frozen=True, slots=True)
class Hashes:
    """Hashes of a Content; rank 0's have the adapter's too."""

    state: str
    rng: str
    adapter_digest: str = ""
    adapter_sha256: str = ""
    needed_bytes: int = 0


class TrainingState:
    """The present state of a Trainer, as the files of a checkpoint (a collective_save.Source).

    scratch: local folder of this rank
    """

    def __init__(
        self,
        trainer: Any,
        base: BaseWatch,
        *,
        scratch: Path,
        steps_per_epoch: int,
        global_batch: int,
    ) -> None:
        self._trainer = trainer
        self._base = base
        self._scratch = scratch
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = global_batch
        self._number = int(trainer.args.process_index)
        self._adapter = Adapter(trainer.model)
        self._trainable = trainable_parameters(trainer.model)
        self._config: bytes | None = None
        self._buffers = HostBuffers(engine.UNCHANGING)

    def capture(
        self, writer: FileWriter, step: int, trigger: Trigger, *, pending_eval: bool
    ) -> Describe:
        """All files of this rank into `writer`; collective, whatever has failed before."""
        head = self._head(step, trigger, pending_eval)
        content = self._content(writer)
        hashes = writer.aside(content, Content.hashes) if content is not None else None
        self._files(writer, content)
        writer.freeze(self._buffers.copy)
        return lambda: self._described(writer, head, hashes)

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter alone, in PEFT's files."""
        tensors = b"".join(tensorfile.blocks(self._adapter.tensors()))
        return {ADAPTER: tensors, CONFIG: self._adapter_config()}

    def _head(self, step: int, trigger: Trigger, pending_eval: bool) -> Head:
        self._trainer.store_flos()
        return Head(
            step=step,
            epoch=step // self._steps_per_epoch,
            samples_seen=step * self._global_batch,
            trigger=trigger,
            learning_rate_hex=float(self._trainer._get_learning_rate()).hex(),
            pending_eval=pending_eval,
        )

    def _content(self, writer: FileWriter) -> Content | None:
        """By reference; None if that failed, which `writer` keeps."""
        trainer, first = self._trainer, self._number == 0
        with writer.guard():
            return Content(
                optimizer=engine.state_of(trainer.deepspeed),
                trainable=dict(self._trainable) if first else {},
                adapter=self._adapter.tensors() if first else {},
                rng=rng.capture(distributed=trainer.args.world_size > 1),
            )
        return None

    def _files(self, writer: FileWriter, content: Content | None) -> None:
        """All files of this rank into `writer`; collective, whatever has failed before."""
        trainer, number = self._trainer, self._number
        with writer.guard():
            if content is not None:
                random_states = rng.file_name(number, trainer.args.world_size)
                writer.dump(random_states, content.rng, engine.dump_tensors)
            writer.put(loss_file(number), pretty(LossState.of(trainer).to_json()))
            if number == 0 and content is not None:
                writer.dump(ADAPTER, content.adapter, _dump_adapter)
                writer.put(CONFIG, self._adapter_config())
                scheduler = trainer.lr_scheduler.state_dict()
                writer.dump("scheduler.pt", scheduler, engine.dump_tensors)
                state = json.dumps(asdict(trainer.state), indent=2, sort_keys=True)
                writer.put("trainer_state.json", state.encode() + b"\n")
        engine.save(trainer.deepspeed, writer, self._scratch / "deepspeed")

    def _described(
        self, writer: FileWriter, head: Head, hashed: Callable[[], Hashes] | None
    ) -> tuple[Digests, Head]:
        """What the manifests say of the state."""
        with writer.guard():
            hashes = hashed() if hashed and writer.error is None else Hashes("", "")
            base, again = self._base.results()
            digests = Digests(state=hashes.state, rng=hashes.rng, base=base, base_again=again)
            return digests, replace(
                head,
                adapter_digest=hashes.adapter_digest,
                adapter_sha256=hashes.adapter_sha256,
                needed_bytes=hashes.needed_bytes,
            )
        return Digests(state="", rng=""), head

    def _adapter_config(self) -> bytes:
        """PEFT's own file; it stays the same while one trains."""
        if self._config is None:
            config = self._trainer.model.active_peft_config
            before = config.inference_mode
            folder = self._scratch / "adapter"
            config.inference_mode = True
            try:
                config.save_pretrained(str(folder))
            finally:
                config.inference_mode = before
            self._config = read_regular(folder / CONFIG)
        return self._config


class Adapter:
    """The adapter's tensors by PEFT's own names; which those are is asked but once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parameters: dict[str, torch.nn.Parameter] | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they are now, by reference."""
        if self._parameters:
            return {name: parameter.detach() for name, parameter in self._parameters.items()}
        found: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self._model, save_embedding_layers=False
        )
        places = {_place(p): p for p in self._model.parameters() if p.requires_grad}
        if all(tensor.numel() and _place(tensor) in places for tensor in found.values()):
            self._parameters = {name: places[_place(tensor)] for name, tensor in found.items()}
        return found


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _dump_adapter(tensors: Mapping[str, torch.Tensor], sink: Sink) -> None:
    for block in tensorfile.blocks(tensors):
        sink.write(block)


# --- host memory for the state that a save stores while training goes on

_UNCHANGING = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device, Enum)


class HostBuffers:
    """Buffers that are used again by every save: new memory would cost more than the copy.

    unchanging: further types whose values never change and need no copy
    """

    def __init__(self, unchanging: tuple[type, ...] = ()) -> None:
        self._unchanging: tuple[type, ...] = (*_UNCHANGING, *unchanging)
        self._buffers: list[torch.Tensor] = []

    def copy(self, values: list[Any]) -> list[Any]:
        """The same values, unchanged by later steps, until the next copy is made."""
        self._buffers, spare = [], self._buffers
        copies = _Copies(self._buffers, spare, self._unchanging)
        copied: list[Any] = copies.of(values)
        copies.settle()
        return copied


class _Copies:
    """Copies of one state. Tensors that share a storage share its copy, as torch.save expects."""

    def __init__(
        self, taken: list[torch.Tensor], spare: list[torch.Tensor], unchanging: tuple[type, ...]
    ) -> None:
        self._taken = taken
        self._spare = _by_size(spare)
        self._unchanging = unchanging
        self._storages: dict[tuple[torch.device, int], torch.Tensor] = {}
        """By the place of what was copied, which lives until the last copy is made."""
        self._dicts: dict[int, tuple[object, object]] = {}
        """Original and copy, by the original's identity."""

    def of(self, value: Any) -> Any:
        """A copy of nested dicts, lists and tuples of tensors and plain values.

        What comes from a GPU is under way until `settle`.
        """
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach())
        if isinstance(value, self._unchanging):
            return value
        if isinstance(value, dict):
            return self._dict(value)
        if isinstance(value, list | tuple):
            items = [self.of(item) for item in value]
            if isinstance(value, list):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return copy.deepcopy(value)

    def _dict(self, value: dict[Any, Any]) -> object:
        if id(value) not in self._dicts:
            same = copy.copy(value)
            for key, item in value.items():
                same[key] = self.of(item)
            self._dicts[id(value)] = value, same
        return self._dicts[id(value)][1]

    def settle(self) -> None:
        """Until all copies have arrived."""
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        source = tensor.untyped_storage()
        place = source.device, source.data_ptr()
        if place not in self._storages:
            self._storages[place] = self._copied(tensor, source.nbytes())
        target = self._storages[place].untyped_storage()
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(target, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _copied(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        spare = self._spare.get((size, tensor.is_cuda))
        buffer = (
            spare.pop()
            if spare
            else torch.empty(size, dtype=torch.uint8, pin_memory=tensor.is_cuda)
        )
        self._taken.append(buffer)
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        whole.set_(tensor.untyped_storage(), 0, (size,), (1,))
        return buffer.copy_(whole, non_blocking=True)


def _by_size(buffers: list[torch.Tensor]) -> dict[tuple[int, bool], list[torch.Tensor]]:
    """Buffers by bytes and whether a GPU may write to them directly."""
    found: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for buffer in buffers:
        pinned = torch.cuda.is_initialized() and buffer.is_pinned()
        found.setdefault((buffer.nbytes, pinned), []).append(buffer)
    return found
