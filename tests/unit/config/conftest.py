"""A folder with the job of the documentation, and helpers to break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.faults import JobFaults
from orchestrator.config.load import load_job, resolve_file
from orchestrator.config.models.site import SiteConfig
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import JobFileError

JOB = """\
name: digits
backend: local            # local | slurm | kubernetes
model: {path: ./model, revision: null}
quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, \
bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: bfloat16}
lora: {r: 8, lora_alpha: 16, lora_dropout: 0.05, target_modules: llm}
data: {train: ./train.json, eval: null, media_root: null}
training: {max_steps: 40, per_device_train_batch_size: 2, gradient_accumulation_steps: 3, \
learning_rate: 1.0e-3, lr_scheduler_type: cosine, warmup_steps: 2, seed: 7}
deepspeed: {stage: 2}
resources: {nodes: 1, gpus_per_node: 2}
checkpoint: {uri: ./runs, every_steps: 10, keep_last: 2}
preemption: {grace_s: 60}
"""


class Folder:
    """A job file beside its model and data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.yaml"
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text("{}")
        self.write("train.json", [{"id": str(i)} for i in range(24)])
        self.write("eval.json", [{"id": "0"}])
        self.job.write_text(JOB)

    def write(self, name: str, value: Any) -> None:
        (self.path / name).write_text(json.dumps(value, indent=1))

    def resolve(self, *overrides: str) -> ResolvedJob:
        return resolve_file(self.job, overrides, SiteConfig())

    def replaced(self, old: str, new: str) -> None:
        """Change the job file's text."""
        text = self.job.read_text()
        assert old in text
        self.job.write_text(text.replace(old, new))

    def said(self, *overrides: str) -> str:
        """What the user sees of a job that is refused, the folder's name left out."""
        with pytest.raises(JobFileError) as caught:
            self.resolve(*overrides)
        return str(caught.value).replace(f"{self.path}/", "")

    def faults(self, *overrides: str) -> JobFaults:
        with pytest.raises(JobFaults) as caught:
            load_job(self.job, overrides)
        return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
