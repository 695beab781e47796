"""The job's words as TrainingArguments, with what is ours laid over them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import UserError

_BATCH_FIELDS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


def training_arguments(
    job: ResolvedJob, plan: BatchPlan, scratch: Path, *, cuda: bool
) -> TrainingArguments:
    """Also joins the process group (transformers does that when the device is first asked for).

    Raises UserError for what transformers refuses.
    """
    deepspeed = copy.deepcopy(dict(job.deepspeed))
    deepspeed.update(dict.fromkeys(_BATCH_FIELDS, "auto"))
    values: dict[str, Any] = dict(job.training)
    values.update(
        output_dir=str(scratch),
        per_device_train_batch_size=plan.micro,
        gradient_accumulation_steps=plan.accumulation,
        deepspeed=deepspeed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        use_cpu=not cuda,
    )
    if not cuda:
        values["ddp_backend"] = "gloo"
        values.setdefault("dataloader_pin_memory", False)
    if job.data.eval is None:
        values["eval_strategy"] = "no"
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as fault:
        raise UserError(f"training: {fault}") from fault
