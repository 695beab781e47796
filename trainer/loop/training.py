"""The training loop: transformers' Trainer, with our data order, votes, saves and way out.

Order at the boundary of a step: metrics, logging, vote, periodic save, evaluation, end.
The loop is always left by an exception (outcome.Leave): nothing of the Trainer's own end of
training runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from orchestrator.contract import proof
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.spec import Assignment
from trainer.base_model.quantization import Keeper
from trainer.base_model.watch import BaseWatch
from trainer.checkpoint import restore
from trainer.checkpoint.commit import BaseFacts
from trainer.checkpoint.coordinator import CheckpointCoordinator
from trainer.checkpoint.engine import install
from trainer.checkpoint.state import TrainingState
from trainer.collectives.group import Group
from trainer.data.sampler import RankBatchSampler
from trainer.loop import evaluation
from trainer.loop.continuity import Continuity
from trainer.loop.gradients import Reached
from trainer.process.rank import Rank
from trainer.state import rng
from trainer.state.window import WindowStart
from trainer.tracking.steplog import StepLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop is made of, beyond the Trainer."""

    rank: Rank
    assignment: Assignment
    group: Group
    base: BaseWatch
    base_facts: BaseFacts
    steps: StepLog
    continuity: Continuity
    sampler: RankBatchSampler
    loader: Any
    evaluation_loader: Any | None
    manifest: CheckpointManifest | None
    """Of the checkpoint to resume from."""
    keeper: Keeper | None
    """Stores the quantized base for later attempts."""


class OrchestratedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loop is left only by outcome.Leave.

    scratch: empty local folder of this rank

    Not supported: what transformers saves, finds or cleans up by itself.
    """

    control: Any

    def __init__(self, parts: Parts, scratch: Path, **options: Any) -> None:
        super().__init__(**options)
        self._parts = parts
        state = TrainingState(
            self,
            parts.base,
            scratch=scratch,
            steps_per_epoch=parts.sampler.steps,
            global_batch=parts.assignment.plan.global_batch,
        )
        self._coordinator = CheckpointCoordinator(
            parts.rank,
            parts.group,
            parts.assignment,
            state,
            parts.steps.metrics,
            manifest=parts.manifest,
            base=parts.base_facts,
            on_commit=parts.keeper.begin if parts.keeper else lambda: None,
        )
        self._reached = Reached(self.model)
        self._distributed = parts.group.size > 1
        self._start_step = 0 if parts.manifest is None else parts.manifest.step
        self._handled = self._start_step
        self._micro = 0
        self._window_size = 0
        self._window: WindowStart | None = None
        self._entered = False
        self._found: restore.Found | None = None

    def close(self) -> None:
        """Give up a save that is in hand."""
        self._coordinator.close()

    # --- what the Trainer asks for -------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self._parts.loader

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        install(self.deepspeed)
        self._parts.rank.phase("engine")
        manifest = self._parts.manifest
        if resume is not None and manifest is not None:
            allowed = self._parts.assignment.allow_change
            self._found = restore.load_engine(
                self,
                resume,
                manifest,
                self._parts.rank.number,
                schedule_may_differ=any(f.split(".")[0] in ("training", "data") for f in allowed),
            )
        self._parts.rank.phase("restore")
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Some schedules ask for the optimizer's defaults, which DeepSpeed's does not pass on."""
        layers = [self.optimizer if optimizer is None else optimizer]
        while (inner := getattr(layers[-1], "optimizer", None)) is not None:
            layers.append(inner)
        for layer in layers:
            if not hasattr(layer, "defaults"):
                layer.defaults = layers[-1].defaults
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        manifest = self._parts.manifest
        if checkpoint is not None and manifest is not None:
            restore.load_rng(checkpoint, manifest, self._parts.rank.number, self._parts.group.size)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._parts.sampler.set_epoch(kwargs["epoch"])
        if not self._entered:
            self._enter(kwargs["resume_from_checkpoint"])
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *_: Any) -> NoReturn:
        """Reached only if the attempt began with the last step of the last epoch."""
        self._enter(self._parts.assignment.start.directory)
        raise AssertionError("the loop ended by itself")

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch one window; abandoned at a notice. Nobody computes before all have voted."""
        batches: list[Any] = []
        while len(batches) < num_batches and not self._parts.rank.board.raised:
            batches.append(next(epoch_iterator))
        if self._coordinator.poll().stop:
            self._coordinator.stop(self.state.global_step, micro=0)
        if self.state.global_step == self._start_step:
            self._parts.rank.phase("training")
        if self.state.global_step == self._start_step:
            samples = [i for batch in batches for i in batch["sample_index"].tolist()]
            restore.check_order(samples, self._parts.sampler, self._start_step)
        self._micro, self._window_size = 0, num_batches
        self._parts.steps.begin()
        return batches, self._get_num_items_in_batch(batches, device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
        return found if return_outputs else self._reached.by(found, inputs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        if self._micro == 0:
            self._window = WindowStart.capture(self, distributed=self._distributed)
            self._parts.base.start()
        samples = inputs.pop("sample_index").tolist()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._parts.steps.micro_batch(samples, loss)
        step, continuity = self.state.global_step, self._parts.continuity
        if continuity.waits(step, self._micro):
            continuity.check(step, self._micro, samples, float(loss))
        self._micro += 1
        if self._micro < self._window_size and self._coordinator.poll().stop:
            assert self._window is not None
            self._window.rewind(self)
            continuity.interrupted(step, self._parts.steps.computed())
            self._coordinator.stop(step, micro=self._micro)
        return loss

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, *rest: Any, learning_rate: float | None = None
    ) -> None:
        """The boundary of a step. The Trainer calls it again at an epoch's end: no-op then."""
        step = self.state.global_step
        if step == self._handled:
            return
        self._handled = step
        evaluate = self._evaluation_due()
        self._parts.steps.end(step, self.state.max_steps, learning_rate, grad_norm)
        if step == self._start_step + 1:
            self._parts.rank.phase("first step")
        self.control.should_log |= self._epoch_ends(self.args.logging_strategy)
        self.control.should_evaluate = self.control.should_save = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, learning_rate=learning_rate)
        vote = self._coordinator.poll(step)
        if vote.stop:
            self._coordinator.stop(self.state.global_step, pending_eval=evaluate)
        last = step >= self.state.max_steps
        if vote.save_due and not last:
            self._coordinator.begin_save(step, pending_eval=evaluate)
        if evaluate:
            self._evaluate_now()
            if self._is_best(step) and not (vote.save_due or last):
                self._coordinator.begin_save(step)
        if last:
            self._coordinator.finish(self.state.global_step)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Replaces the Trainer's: every sample once, a vote at every batch."""
        parts = self._parts
        metrics = evaluation.run(self, parts.evaluation_loader, parts.group, self._stops_evaluating)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _stops_evaluating(self) -> bool:
        self._parts.rank.beat("evaluating")
        return self._coordinator.poll().stop

    # --- ours ----------------------------------------------------------------------------

    def _enter(self, resume: str | None) -> None:
        """Once, before the first epoch: what the Trainer has reset or left out."""
        self._entered = True
        manifest = self._parts.manifest
        if manifest is None or resume is None:
            return
        loss = restore.load_loss(resume, self._parts.rank.number)
        if loss is not None:
            loss.apply(self)
        self._tell_resumed(resume, manifest)
        if manifest.pending_eval and self._parts.evaluation_loader is not None:
            self._evaluate_now()
        if self.state.global_step >= self.state.max_steps:
            self._coordinator.finish(self.state.global_step)

    def _tell_resumed(self, resume: str, manifest: CheckpointManifest) -> None:
        """What every rank found after the load, beside what the manifest recorded."""
        parts = self._parts
        random = restore.load_rng(resume, manifest, parts.rank.number, parts.group.size)
        mine = {**to_json(self._found), "rng_digest": random}
        all_ranks = parts.group.gather(mine)
        self._coordinator.tell(
            "resumed",
            step=manifest.step,
            schedule_hex=all_ranks[0]["schedule_hex"],
            found=proof.of_ranks(all_ranks),
            recorded=proof.of_manifest(manifest),
        )

    def _epoch_ends(self, strategy: IntervalStrategy) -> bool:
        """True if `strategy` is by epochs and this step is an epoch's last."""
        ends = self.state.global_step % self._parts.sampler.steps == 0
        return bool(strategy == IntervalStrategy.EPOCH and ends)

    def _evaluation_due(self) -> bool:
        by_epoch = self._epoch_ends(self.args.eval_strategy)
        delayed = self.args.eval_delay > (self.state.epoch or 0)
        due = bool(self.control.should_evaluate) or (by_epoch and not delayed)
        return due and self._parts.evaluation_loader is not None

    def _is_best(self, step: int) -> bool:
        """Whether this step is one of those that `checkpoint.keep_best` keeps, as of now.

        The Trainer's history stands in every checkpoint, so a resumed run answers alike.
        """
        count = self._parts.assignment.job.checkpoint.keep_best
        history = (e for e in self.state.log_history if "eval_loss" in e)
        losses = {e["step"]: e["eval_loss"] for e in history if math.isfinite(e["eval_loss"])}
        return step in sorted(losses, key=lambda s: (losses[s], s))[:count]

    def _evaluate_now(self) -> None:
        """Evaluate between two steps, leaving no trace in the training state."""
        parts = self._parts
        parts.base.start()
        parts.base.results()
        state = rng.capture(distributed=self._distributed)
        parts.rank.phase("evaluating")
        started = time.monotonic()
        try:
            metrics = self._evaluate(None, None)
        except evaluation.Interrupted:
            self._coordinator.tell("eval_interrupted", step=self.state.global_step)
            metrics = None
        finally:
            rng.restore(state)
            self.model.train()
        if metrics is None:
            self._coordinator.stop(self.state.global_step, pending_eval=True)
        parts.base.start_again()
        parts.steps.evaluated(self.state.global_step, metrics, time.monotonic() - started)
        parts.rank.phase("training")
