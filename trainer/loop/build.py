"""Puts a Trainer together from an assignment. Imports the whole training stack."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from orchestrator.contract import layout
from orchestrator.contract.interrupted import loss_tolerance
from orchestrator.contract.jsonio import pretty
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.spec import Assignment
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Storage
from trainer.base_model import attention
from trainer.base_model.modeling import Loaded, base_digest, load_model
from trainer.base_model.quantization import Base
from trainer.base_model.watch import BaseWatch
from trainer.checkpoint import restore
from trainer.checkpoint.commit import BaseFacts
from trainer.collectives.gloo import make_group
from trainer.collectives.group import Group
from trainer.data.dataset import Collator, load_dataset
from trainer.data.loaders import EvaluationSampler, make_loader
from trainer.data.replacing import Replacements, ReplacingDataset, Which
from trainer.data.sampler import RankBatchSampler, dropped_per_epoch
from trainer.loop import device_memory as devicememory
from trainer.loop.arguments import training_arguments
from trainer.loop.continuity import Continuity
from trainer.loop.gradients import GradientWatch
from trainer.loop.training import OrchestratedTrainer, Parts
from trainer.process.rank import Rank
from trainer.tracking.metrics import MetricsLog
from trainer.tracking.steplog import StepLog
from trainer.tracking.trackers import open_trackers

_BARRIER_S = 1.0


def build(
    rank: Rank, assignment: Assignment, scratch: Path, closers: list[Callable[[], object]]
) -> OrchestratedTrainer:
    """A Trainer ready for `train`.

    scratch: empty local folder of this rank
    closers: gets what must be called on the way out, in order

    Raises UserError and ContractRefused.
    """
    job, start = assignment.job, assignment.start
    args = training_arguments(job, assignment.plan, scratch, cuda=torch.cuda.is_available())
    device = args.device  # asking for it joins the process group
    group = make_group(float(args.ddp_timeout))
    closers.append(lambda: _part(group))
    manifest = None
    if start.kind == "checkpoint":
        manifest = restore.read_manifest(start.directory or "")
    source = Base(rank, assignment, group, device, _recorded_base(manifest, device.type))

    kernel = attention.choose(
        job, device, None if manifest is None else manifest.facts.get("attention")
    )

    def load(snapshot: Path | None) -> Loaded:
        set_seed(args.seed)
        return load_model(
            job, device, snapshot, base_loaded=lambda: rank.phase("base"), attention=kernel
        )

    loaded = source.load(load)
    if start.kind == "weights":
        restore.load_weights_only(loaded.model, start.directory or "")
    GradientWatch(loaded.model)
    rank.phase("adapter")
    data = Data(assignment, args, rank, loaded)
    parts = _parts(rank, assignment, group, manifest, loaded, data, source)
    closers.insert(0, parts.steps.close)
    if parts.keeper is not None:
        closers.insert(0, parts.keeper.close)
    closers.insert(0, lambda: rank.event("memory", **devicememory.peak()))
    trainer = OrchestratedTrainer(
        parts,
        scratch,
        model=loaded.model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.collate,
    )
    closers.insert(0, trainer.close)
    return trainer


class Data:
    """Data sets and loaders of one rank."""

    def __init__(
        self, assignment: Assignment, args: TrainingArguments, rank: Rank, loaded: Loaded
    ) -> None:
        job, plan = assignment.job, assignment.plan
        seed = args.seed if args.data_seed is None else args.data_seed
        self.collate = Collator(loaded.processor.pad_token_id)
        storage = open_storage(assignment.storage)
        limit = job.max_length or loaded.max_positions

        def guarded(which: Which) -> tuple[ReplacingDataset, Replacements]:
            seen = Replacements(storage, rank, job.data, which)
            data = load_dataset(job.data, which, loaded.processor, limit)
            return ReplacingDataset(data, job.data, which, seen.known), seen

        self.train, seen = guarded("train")
        self.sampler = RankBatchSampler(len(self.train), plan, rank.number, seed)
        self.loader = make_loader(self.train, self.sampler, self.collate, args, seed, seen.watch)
        self.evaluation: Any = None
        self.evaluation_loader: Any = None
        if job.data.eval is not None:
            self.evaluation, seen = guarded("eval")
            sampler = EvaluationSampler(
                len(self.evaluation), args.per_device_eval_batch_size, rank.number, plan.world_size
            )
            self.evaluation_loader = make_loader(
                self.evaluation, sampler, self.collate, args, seed, seen.watch
            )
        if rank.number == 0:
            rank.event(
                "data",
                samples=len(self.train),
                steps_per_epoch=self.sampler.steps,
                dropped_per_epoch=dropped_per_epoch(len(self.train), plan.global_batch),
                evaluation_samples=0 if self.evaluation is None else len(self.evaluation),
            )
            rank.event(
                "trainable",
                parameters=loaded.trainable_parameters,
                total=loaded.total_parameters,
                modules=len(loaded.table),
                attention=attention.of_model(loaded.model),
                summary=loaded.summary(),
            )
            logging.getLogger("qvl").info("what is trained:\n%s", loaded.summary())
            storage.put(layout.MODULES, pretty(loaded.listing()))


def _parts(  # noqa: PLR0913
    rank: Rank,
    assignment: Assignment,
    group: Group,
    manifest: CheckpointManifest | None,
    loaded: Loaded,
    data: Data,
    source: Base,
) -> Parts:
    storage = open_storage(assignment.storage, seconds_left=rank.board.seconds_left)
    device = next(loaded.model.parameters()).device.type
    tolerance = _tolerance(manifest, device)
    base_facts = BaseFacts(
        recorded=source.recorded,
        facts={
            "base_device": device,
            "loss_tolerance": tolerance,
            "attention": attention.of_model(loaded.model),
        },
    )
    base_watch = BaseWatch((lambda: base_digest(loaded.model)) if rank.local_rank == 0 else None)
    return Parts(
        rank=rank,
        assignment=assignment,
        group=group,
        base_facts=base_facts,
        base=base_watch,
        steps=_step_log(storage, rank, group, assignment),
        continuity=Continuity(rank, assignment, tolerance),
        sampler=data.sampler,
        loader=data.loader,
        evaluation_loader=data.evaluation_loader,
        manifest=manifest,
        keeper=source.keeper(loaded, base_watch),
    )


def _tolerance(manifest: CheckpointManifest | None, device: str) -> float:
    """What the run's first start recorded; wider where another type of device goes on."""
    recorded = {} if manifest is None else manifest.facts
    return max(float(recorded.get("loss_tolerance", 0.0)), loss_tolerance(device))


def _recorded_base(manifest: CheckpointManifest | None, device: str) -> str | None:
    """The base's digest is compared only where it was made on the same type of device."""
    facts = {} if manifest is None else manifest.facts
    return facts.get("base_digest") if facts.get("base_device") == device else None


def _step_log(storage: Storage, rank: Rank, group: Group, assignment: Assignment) -> StepLog:
    metrics = MetricsLog(
        storage, assignment.attempt, rank.number, lambda text: rank.warn("metrics", text)
    )
    trackers = open_trackers(storage, assignment, rank.warn) if rank.number == 0 else ()
    return StepLog(rank, group, metrics, trackers, assignment.attempt)


def _part(group: Group) -> None:
    """The peers may have left already, or hang."""
    with suppress(Exception):
        group.barrier(_BARRIER_S)
    group.close()
