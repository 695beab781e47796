"""Puts a Trainer together from an assignment. Imports the whole training stack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.spec import Assignment
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Storage
from trainer import restore
from trainer.arguments import training_arguments
from trainer.base import BaseWatch
from trainer.commit import Committer
from trainer.dataset import Collator, load_dataset
from trainer.gloo import make_group
from trainer.group import Group
from trainer.loaders import EvaluationSampler, make_loader
from trainer.loop import OrchestratedTrainer, Parts
from trainer.metrics import MetricsLog
from trainer.modeling import Loaded, base_digest, load_model
from trainer.rank import Rank
from trainer.sampler import RankBatchSampler, dropped_per_epoch
from trainer.steplog import StepLog
from trainer.trackers import TensorBoard
from trainer.votes import Votes

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
    set_seed(args.seed)
    loaded = load_model(job, device)
    if start.kind == "weights":
        restore.load_weights_only(loaded.model, start.directory or "")
    rank.phase("model")
    data = Data(assignment, args, rank, loaded)
    parts = _parts(rank, assignment, group, manifest, loaded, data)
    closers.insert(0, parts.steps.close)
    saver_options = {
        "scratch": scratch,
        "steps_per_epoch": data.sampler.steps,
        "global_batch": assignment.plan.global_batch,
    }
    return OrchestratedTrainer(
        parts,
        saver_options,
        model=loaded.model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.collate,
    )


class Data:
    """Data sets and loaders of one rank."""

    def __init__(
        self, assignment: Assignment, args: TrainingArguments, rank: Rank, loaded: Loaded
    ) -> None:
        job, plan = assignment.job, assignment.plan
        seed = args.seed if args.data_seed is None else args.data_seed
        self.collate = Collator(loaded.processor.pad_token_id)
        self.train = load_dataset(job.data, "train", loaded.processor, job.max_length)
        self.sampler = RankBatchSampler(len(self.train), plan, rank.number, seed)
        self.loader = make_loader(self.train, self.sampler, self.collate, args, seed)
        self.evaluation: Any = None
        self.evaluation_loader: Any = None
        if job.data.eval is not None:
            self.evaluation = load_dataset(job.data, "eval", loaded.processor, job.max_length)
            sampler = EvaluationSampler(
                len(self.evaluation), args.per_device_eval_batch_size, rank.number, plan.world_size
            )
            self.evaluation_loader = make_loader(self.evaluation, sampler, self.collate, args, seed)
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
                summary=loaded.summary(),
            )


def _parts(
    rank: Rank,
    assignment: Assignment,
    group: Group,
    manifest: CheckpointManifest | None,
    loaded: Loaded,
    data: Data,
) -> Parts:
    storage = open_storage(assignment.storage)
    digest = (lambda: base_digest(loaded.model)) if rank.local_rank == 0 else None
    return Parts(
        rank=rank,
        assignment=assignment,
        group=group,
        votes=Votes(group, rank.board, assignment.job.checkpoint),
        committer=_committer(storage, group, assignment, manifest, loaded),
        base=BaseWatch(digest),
        steps=_step_log(storage, rank, group, assignment),
        sampler=data.sampler,
        loader=data.loader,
        evaluation_loader=data.evaluation_loader,
        manifest=manifest,
    )


def _committer(
    storage: Storage,
    group: Group,
    assignment: Assignment,
    manifest: CheckpointManifest | None,
    loaded: Loaded,
) -> Committer:
    """The base's digest is compared only where it was made on the same type of device."""
    device = next(loaded.model.parameters()).device.type
    recorded = {} if manifest is None else manifest.facts
    same = recorded.get("base_device") == device
    return Committer(
        storage,
        group,
        assignment,
        recorded_base=recorded.get("base_digest") if same else None,
        base_facts={"base_device": device},
    )


def _step_log(storage: Storage, rank: Rank, group: Group, assignment: Assignment) -> StepLog:
    metrics = MetricsLog(
        storage, assignment.attempt, rank.number, lambda text: rank.warn("metrics", text)
    )
    folder = storage.local_path("tensorboard") if rank.number == 0 else None
    board = TensorBoard(folder, assignment.start.step + 1, lambda text: rank.warn("tracker", text))
    return StepLog(rank, group, metrics, board, assignment.attempt)


def _part(group: Group) -> None:
    """The peers may have left already, or hang."""
    with suppress(Exception):
        group.barrier(_BARRIER_S)
    group.close()
