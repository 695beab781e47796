"""The commented job file that `init` writes. Pure."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from pydantic import BaseModel

from orchestrator.config.models.job import NAME_RULE, JobSpec
from orchestrator.config.models.kubernetes import KubernetesSection
from orchestrator.config.models.library import (
    TARGET_PRESETS,
    LoraSection,
    QuantizationSection,
    TrainingSection,
)
from orchestrator.config.models.slurm import SlurmSection
from orchestrator.config.values.suggest import listed

_WIDTH, _COLUMN = 99, 36
_TEXT = """\
# A job of qvl-orchestrate. Relative paths start at this file.
# Settings behind a "#" show their defaults: remove the "# " to change one.

# {name_rule}.
name: {name}
# local | slurm | kubernetes
backend: {backend}

# Folder of the base model, or its id on the hub (owner/name) with a commit as revision.
model:
  path: {model}
  revision: null
  snapshot: auto                # auto | off: keep the quantized base beside the runs
  # attention: auto             # auto | sdpa | flash_attention_2 | eager

# Index files (JSON or JSONL) of image conversations. media_root null: relative media paths
# start at the index file.
data:
  train: {train}
  eval: null
  media_root: null
  # fingerprint: paths          # what identifies the media: paths (and sizes) | full (contents)
  # policy: replace             # a broken sample: replace it by another | stop
  # max_replaced: 10            # of one index file; more stop the run

# Fields of {quantization_class}.
# Without this block: the values below. null: no quantization.
quantization:
  load_in_4bit: true
  bnb_4bit_quant_type: nf4
  bnb_4bit_use_double_quant: true
  bnb_4bit_compute_dtype: bfloat16

# Fields of {lora_class}.
# As target_modules: {presets}, a list, or a regular expression for whole module names.
lora:
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05
  target_modules: llm

# Fields of {training_class}.
# Saving, resuming, sampling and launching are set elsewhere in this file, or done for you.
training:
  max_steps: 1000               # or num_train_epochs
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 8
  learning_rate: 1e-4
  lr_scheduler_type: cosine
  warmup_steps: 0.03            # below 1: a share of all steps
  seed: 42
  # bf16: true                  # unless fp16 or bnb_4bit_compute_dtype says otherwise
  # activation_checkpointing: false
  # logging_steps: 1
  # report_to: tensorboard      # tensorboard, wandb (offline), both in a list, or none
  # eval_strategy: no           # no | steps (with eval_steps) | epoch; needs data.eval

# {deepspeed}
deepspeed:
  stage: 2
  # config: deepspeed.json      # instead of a stage

# The shape of the job: it stays the same over all attempts.
resources:
  nodes: 1
  gpus_per_node: {gpus}            # on the local backend without a GPU: processes on the CPU
  # cpus_per_gpu: null
  # memory_gb: null
  # time_limit: null            # of one attempt: 4h, 90m, 1-12:00:00, or seconds

# Each run gets its own directory below uri.
checkpoint:
  uri: ./runs
  every_steps: 100              # without any interval: every_minutes: 30
  # every_minutes: null
  # max_unsaved: null           # 1h: no checkpoint for so long, and the GPUs are freed
  keep_last: 2
  # keep_best: 0                # and those with the lowest evaluation loss
  # local_dir: null                # like /scratch: copies on the node's own disk, a faster source

preemption:
  grace_s: 60                   # seconds from the notice to the kill
  # max_failures_without_progress: 3

# resume:
#   versions: warn              # other library versions at a resume: warn | strict

# Your own code, whose contents must be the same at a resume.
# code: []

# Plain values only; secrets by name: they are taken from your environment at submit.
# env: {{OMP_NUM_THREADS: 1}}
# secrets: [HF_TOKEN]

# python: null                   # interpreter of the run; null = the one that submits
# max_length: null               # tokens of the longest sample; null = the model's limit

# Settings of one backend, used there only. What is left out is the site's default.
{slurm}
{kubernetes}
"""


def init_text(
    name: str = "my-run",
    *,
    backend: str = "local",
    model: str = "./model",
    train: str = "./train.json",
    gpus: int = 1,
) -> str:
    """A job file with every setting explained; it validates as soon as its files exist.

    The values are written as they are: `load.parse_job` checks them like any other.
    """
    return _TEXT.format(
        name_rule=NAME_RULE,
        name=_scalar(name),
        backend=_scalar(backend),
        model=_scalar(model),
        train=_scalar(train),
        gpus=gpus,
        presets=listed(TARGET_PRESETS),
        deepspeed=JobSpec.model_fields["deepspeed"].description,
        quantization_class=QuantizationSection.SOURCE,
        lora_class=LoraSection.SOURCE,
        training_class=TrainingSection.SOURCE,
        slurm=_commented("slurm", SlurmSection),
        kubernetes=_commented("kubernetes", KubernetesSection),
    )


def _commented(name: str, model: type[BaseModel]) -> str:
    """A block with each field's default and description, all of it in comments."""
    lines = [f"# {name}:"]
    for field, info in model.model_fields.items():
        head = f"#   {field}: {_value(info.get_default(call_default_factory=True))}"
        said = textwrap.wrap(info.description or "", _WIDTH - _COLUMN, break_on_hyphens=False)
        lines.append(f"{head:<{_COLUMN - 3}} # {said[0]}")
        lines += [f"{'#':<{_COLUMN - 2}}# {more}" for more in said[1:]]
    return "\n".join(lines)


def _value(default: Any) -> str:
    return _scalar(default) if isinstance(default, str) else json.dumps(default)


def _scalar(text: str) -> str:
    """The text as a YAML scalar: plain where that is safe."""
    plain = re.fullmatch(r"(\.{0,2}/|[A-Za-z])[A-Za-z0-9._/-]*", text) is not None
    return text if plain and text.lower() not in ("null", "true", "false") else json.dumps(text)
