"""`python -m tests.harness.plain CHECKPOINT JOB`: plain PEFT and a plain Trainer read it.

Prints one JSON line: the adapter digest after a plain resume, the step it went on to, and
whether PeftModel.from_pretrained gives the same weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(checkpoint: Path, job_file: Path) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.update(DS_ACCELERATOR="cpu")
    import torch

    from orchestrator.contract.jsonio import from_json
    from orchestrator.contract.resolved import ResolvedJob
    from trainer.base_model.modeling import load_model
    from trainer.checkpoint import engine

    engine.without_compiler()
    job = from_json(ResolvedJob, json.loads(job_file.read_text()))
    loaded = load_model(job, torch.device("cpu"))
    seen = {**resume(checkpoint, job, loaded), "peft_digest": read_by_peft(checkpoint, job)}
    print(json.dumps(seen))


def resume(checkpoint: Path, job: Any, loaded: Any) -> dict[str, Any]:
    """One step of a plain Trainer from the checkpoint."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from trainer.base_model.modeling import trainable_digest
    from trainer.data.dataset import Collator, load_dataset

    collate = Collator(loaded.processor.pad_token_id)
    seen: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            seen.update(digest=trainable_digest(kw["model"]), start=state.global_step)

    args = TrainingArguments(
        output_dir=str(checkpoint.parent / "plain"),
        max_steps=json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] + 1,
        per_device_train_batch_size=job.batch.micro,
        gradient_accumulation_steps=job.batch.accumulation,
        deepspeed=dict(job.deepspeed),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        ddp_backend="gloo",
    )
    trainer = Trainer(
        model=loaded.model,
        args=args,
        callbacks=[Look()],
        data_collator=lambda items: {
            k: v for k, v in collate(items).items() if k != "sample_index"
        },
        train_dataset=load_dataset(job.data, "train", loaded.processor, None),
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return {**seen, "step": trainer.state.global_step}


def read_by_peft(checkpoint: Path, job: Any) -> str:
    """Digest of the adapter as PeftModel.from_pretrained reads it."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from trainer.base_model.modeling import trainable_digest

    base = AutoModelForImageTextToText.from_pretrained(job.model.path)
    return trainable_digest(PeftModel.from_pretrained(base, str(checkpoint), is_trainable=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
