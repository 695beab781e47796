"""The resolved job: job.yaml with every default filled in and every path absolute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.contract.plan import BatchPlan

BackendName = Literal["local", "slurm", "kubernetes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The base model: an absolute local folder, or a hub id with its revision."""

    path: str
    revision: str | None = None
    snapshot: Literal["auto", "off"] = "auto"
    """Whether the base, once quantized, is kept beside the runs for later attempts."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """How attention is computed; auto: chosen where the run first starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Training data: absolute index files (JSON or JSONL)."""

    train: str
    eval: str | None = None
    media_root: str | None = None
    """Folder that relative media paths start from; None = the index file's own folder."""
    fingerprint: Literal["paths", "full"] = "paths"
    """What identifies the media: path and size, or the contents too."""
    policy: Literal["replace", "stop"] = "replace"
    """What happens to a sample that cannot be used: another takes its place, or the run stops."""
    max_replaced: int = 10
    """Broken samples of one index file from which the run stops all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Shape of the job; it never changes over the attempts of a run."""

    nodes: int
    gpus_per_node: int
    """GPUs of each node; without a GPU on the local backend: processes on the CPU."""
    cpus_per_gpu: int | None = None
    memory_gb: float | None = None
    time_limit_s: int | None = None

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """Where and how often to save."""

    uri: str
    """Root under which each run gets `<uri>/<run_id>/`."""
    every_steps: int | None = None
    every_minutes: float | None = None
    max_unsaved_s: float | None = None
    """How long a run may train without a commit; None = the longer of four intervals and 30
    minutes.
    """
    keep_last: int = 2
    keep_best: int = 0
    """Checkpoints with the lowest loss on the held-out data that stay besides."""
    local_dir: str | None = None
    """Folder on the node's own disk for copies of checkpoints (see storage.tiers)."""
    survives: str = "node"
    """What a commit must survive, as the site says: `process` or `node`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionSpec:
    """What happens at a notice."""

    grace_s: float
    """Seconds from the notice to the kill."""
    max_failures_without_progress: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """Everything an attempt needs to know; stored as resolved.json and hashed."""

    name: str
    backend: BackendName
    model: ModelSpec
    quantization: Mapping[str, Any]
    """Arguments of BitsAndBytesConfig; empty = no quantization."""
    lora: Mapping[str, Any]
    """Arguments of LoraConfig; `target_modules` may name a preset (llm, llm+vision, llm+merger)."""
    data: DataSpec
    training: Mapping[str, Any]
    """Arguments of TrainingArguments, without those that are ours."""
    deepspeed: Mapping[str, Any]
    """The whole DeepSpeed configuration."""
    zero_stage: int
    resources: Resources
    checkpoint: CheckpointSpec
    preemption: PreemptionSpec
    batch: BatchPlan
    """The plan as submitted; the one in force is the manifest's."""
    resume_versions: Literal["strict", "warn"] = "warn"
    code: tuple[str, ...] = ()
    """Absolute files and folders of the user's code, whose digest the resume contract compares."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names of environment variables; the values travel apart."""
    python: str | None = None
    """Interpreter of the run; None = the submitter's."""
    hang_s: float = 600.0
    """`training.hang_s`: seconds without a step that are taken for a hang; 0 = none are."""
    max_length: int | None = None
    """Tokens of the longest sample; None = the model's limit."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    kubernetes: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1
