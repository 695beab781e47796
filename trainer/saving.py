"""Writes a checkpoint that plain transformers and PEFT can read, and commits it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict

from orchestrator.contract.jsonio import pretty
from orchestrator.contract.manifest import Trigger
from orchestrator.storage.hashing import sha256
from trainer import engine, rng, tensorfile
from trainer.background import Background
from trainer.base import BaseWatch
from trainer.commit import Committer
from trainer.compact import needed
from trainer.metrics import MetricsLog
from trainer.modeling import trainable_digest
from trainer.parts import Committed, Digests, Failed, FileWriter, Head
from trainer.window import LossState

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def loss_file(rank: int) -> str:
    """Name of the file with a rank's LossState."""
    return f"qvl_loss_{rank}.json"


class Saver:
    """Saves the trainer's present state as a checkpoint of its present step. Collective."""

    def __init__(
        self,
        trainer: Any,
        committer: Committer,
        background: Background,
        base: BaseWatch,
        metrics: MetricsLog,
        *,
        scratch: Path,
        steps_per_epoch: int,
        global_batch: int,
    ) -> None:
        self._trainer = trainer
        self._committer = committer
        self._background = background
        self._base = base
        self._metrics = metrics
        self._scratch = scratch
        self._steps_per_epoch = steps_per_epoch
        self._global_batch = global_batch
        self._number = int(trainer.args.process_index)
        self._adapter = Adapter(trainer.model)
        self._aside = ThreadPoolExecutor(1, "qvl-hash")

    def write(self, step: int, trigger: Trigger, pending_eval: bool) -> Committed | Failed:
        """Save and commit. Raises as Committer.commit; other failures are returned."""
        writer = self._committer.begin(step)
        self._metrics.flush()
        digests, head = self._capture(writer, step, trigger, pending_eval)
        return self._committer.commit(writer, digests, head)

    def stage(self, step: int, trigger: Trigger, pending_eval: bool) -> None:
        """Copy the state and leave the rest to the saver process."""
        writer = self._background.stage()
        digests, head = self._capture(writer, step, trigger, pending_eval)
        self._background.submit(writer, digests, head)
        self._metrics.flush_soon(lambda: self._background.metrics_are_durable(step))

    def salvage(self, step: int) -> int:
        """Store the adapter alone, on rank 0; returns its bytes. Raises StorageError."""
        adapter = b"".join(tensorfile.blocks(self._adapter.tensors()))
        self._committer.salvage(step, {ADAPTER: adapter, CONFIG: self._adapter_config()})
        return len(adapter)

    def _capture(
        self, writer: FileWriter, step: int, trigger: Trigger, pending_eval: bool
    ) -> tuple[Digests, Head]:
        """All files of this rank into `writer`."""
        self._trainer.store_flos()
        head = Head(
            step=step,
            epoch=step // self._steps_per_epoch,
            samples_seen=step * self._global_batch,
            trigger=trigger,
            learning_rate_hex=float(self._trainer._get_learning_rate()).hex(),
            pending_eval=pending_eval,
        )
        hashes = _Hashes(self._aside, self._trainer)
        with writer.guard():
            hashes.begin()
        if self._number == 0:
            self._write_shared(writer, hashes)
        engine.save(self._trainer.deepspeed, writer, self._scratch / "deepspeed")
        with writer.guard():
            if self._number == 0:
                head = hashes.complete(head)
        return self._write_own(writer, hashes), head

    def _write_shared(self, writer: FileWriter, hashes: _Hashes) -> None:
        """Adapter, scheduler and trainer state: rank 0's."""
        trainer = self._trainer
        with writer.guard():
            adapter = self._adapter.tensors()
            hashes.begin_adapter(adapter)
            writer.write(ADAPTER, lambda sink: [sink.write(b) for b in tensorfile.blocks(adapter)])
            writer.put(CONFIG, self._adapter_config())
            scheduler = trainer.lr_scheduler.state_dict()
            engine.write_tensors(writer, "scheduler.pt", lambda: scheduler)
            state = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True)
            writer.put("trainer_state.json", state.encode() + b"\n")

    def _write_own(self, writer: FileWriter, hashes: _Hashes) -> Digests:
        """Random states and loss accounting of this rank; its digests."""
        args, number = self._trainer.args, self._number
        with writer.guard():
            state = rng.capture(distributed=args.world_size > 1)
            name = rng.file_name(number, args.world_size)
            engine.write_tensors(writer, name, lambda: state)
            writer.put(loss_file(number), pretty(LossState.of(self._trainer).to_json()))
            base, again = self._base.results()
            return Digests(
                state=hashes.state(),
                rng=rng.digest(state),
                base=base,
                base_again=again,
            )
        return Digests(state="", rng="")

    def _adapter_config(self) -> bytes:
        config = self._trainer.model.active_peft_config
        before = config.inference_mode
        folder = self._scratch / "adapter"
        config.inference_mode = True
        try:
            config.save_pretrained(str(folder))
        finally:
            config.inference_mode = before
        return (folder / CONFIG).read_bytes()


class _Hashes:
    """Hashes of the state in memory, made by another thread while the files are written.

    Each method raises what went wrong in that thread.
    """

    def __init__(self, aside: Executor, trainer: Any) -> None:
        self._aside = aside
        self._trainer = trainer

    def begin(self) -> None:
        """Of the optimizer's state."""
        state = engine.state_of(self._trainer.deepspeed)
        self._state = self._aside.submit(engine.digest_of, state)

    def begin_adapter(self, adapter: Mapping[str, torch.Tensor]) -> None:
        """Of the adapter, as tensors and as a file."""
        self._needed = needed((t.numel(), t.element_size()) for t in adapter.values())
        self._digest = self._aside.submit(trainable_digest, self._trainer.model)
        self._sha256 = self._aside.submit(sha256, tensorfile.blocks(adapter))

    def state(self) -> str:
        """The optimizer's."""
        return self._state.result()

    def complete(self, head: Head) -> Head:
        """The head with the adapter's."""
        return dataclasses.replace(
            head,
            adapter_digest=self._digest.result(),
            adapter_sha256=self._sha256.result(),
            needed_bytes=self._needed,
        )


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
