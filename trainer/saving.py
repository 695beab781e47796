"""Writes a checkpoint that plain transformers and PEFT can read, and commits it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import get_peft_model_state_dict

from orchestrator.contract.jsonio import pretty
from orchestrator.contract.manifest import Trigger
from orchestrator.storage.hashing import sha256
from trainer import engine, rng
from trainer.background import Background
from trainer.base import BaseWatch
from trainer.commit import Committer
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
        adapter = adapter_bytes(self._trainer.model)
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
        if self._number == 0:
            head = self._write_shared(writer, head)
        engine.save(self._trainer.deepspeed, writer, self._scratch / "deepspeed")
        return self._write_own(writer), head

    def _write_shared(self, writer: FileWriter, head: Head) -> Head:
        """Adapter, scheduler and trainer state: rank 0's; the head with their hashes."""
        trainer = self._trainer
        with writer.guard():
            adapter = adapter_bytes(trainer.model)
            head = dataclasses.replace(
                head,
                adapter_digest=trainable_digest(trainer.model),
                adapter_sha256=sha256(adapter),
            )
            writer.put(ADAPTER, adapter)
            writer.put(CONFIG, self._adapter_config())
            scheduler = trainer.lr_scheduler.state_dict()
            engine.write_tensors(writer, "scheduler.pt", lambda: scheduler)
            state = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True)
            writer.put("trainer_state.json", state.encode() + b"\n")
        return head

    def _write_own(self, writer: FileWriter) -> Digests:
        """Random states and loss accounting of this rank; its digests."""
        args, number = self._trainer.args, self._number
        with writer.guard():
            state = rng.capture(distributed=args.world_size > 1)
            name = rng.file_name(number, args.world_size)
            engine.write_tensors(writer, name, lambda: state)
            writer.put(loss_file(number), pretty(LossState.of(self._trainer).to_json()))
            base, again = self._base.results()
            return Digests(
                state=engine.state_digest(self._trainer.deepspeed),
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


def adapter_bytes(model: Any) -> bytes:
    """The adapter as PEFT's own safetensors file."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(copies, metadata={"format": "pt"})
    return data
