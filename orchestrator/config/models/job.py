"""The job file: its fields, their types and defaults (pydantic models, all frozen)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from orchestrator.config.fields import (
    Names,
    Positive,
    Section,
    Text,
    refuse,
)
from orchestrator.config.models.kubernetes import KubernetesSection
from orchestrator.config.models.library import (
    LoraSection,
    QuantizationSection,
    TrainingSection,
    qlora,
)
from orchestrator.config.models.slurm import SlurmSection
from orchestrator.config.values.duration import parse_duration

NAME_RULE = "1 to 40 of a-z, 0-9 and -, beginning and ending with a letter or digit"

_MAY_BE_EMPTY = frozenset(
    {"lora", "training", "resources", "checkpoint", "preemption", "resume"}
    | {"code", "env", "secrets", "slurm", "kubernetes"}
)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def _check_name(value: str) -> str:
    if _NAME.fullmatch(value):
        return value
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:40].strip("-")
    hint = f"for example {slug}" if slug else None
    raise refuse(f"{value[:60]!r} is not a name: {NAME_RULE}", hint)


def _check_duration(value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as fault:
        raise refuse(str(fault)) from None


def _as_block(value: Any) -> Any:
    return {"config": value} if isinstance(value, str) else value


_DURATION_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}, {"type": "null"}]}
)


class ModelSection(Section):
    """The base model."""

    path: Text = Field(
        description="Folder of the base model, or its id on the hub (then with a revision)."
    )
    revision: Text | None = Field(
        default=None, description="Commit of a model on the hub; null for a folder."
    )
    snapshot: Literal["auto", "off"] = Field(
        default="auto",
        description="Keep the quantized base beside the runs, for later attempts to load.",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto",
        description="How attention is computed; auto: FlashAttention 2 where the first node has "
        "it, else torch's SDPA, and the same at every resume.",
    )


class DataSection(Section):
    """Training and evaluation data."""

    train: Text = Field(description="Index file of the training data: JSON or JSONL.")
    eval: Text | None = Field(default=None, description="Index file of the evaluation data.")
    media_root: Text | None = Field(
        default=None,
        description="Folder that relative media paths start from; null = the index's folder.",
    )
    fingerprint: Literal["paths", "full"] = Field(
        default="paths",
        description="What identifies the media at a resume: path and size, or the contents too.",
    )
    policy: Literal["replace", "stop"] = Field(
        default="replace",
        description="A sample that cannot be used: another takes its place, or the run stops.",
    )
    max_replaced: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=10,
        description="Broken samples of one index file that are replaced before the run stops.",
    )


class DeepSpeedSection(Section):
    """DeepSpeed: a ZeRO stage, or a configuration file of your own."""

    stage: Literal[1, 2, 3] | None = Field(
        default=None, description="ZeRO stage: 1 or 2 (the default)."
    )
    config: Text | None = Field(
        default=None, description="A DeepSpeed JSON file, instead of a stage."
    )


class ResourcesSection(Section):
    """The shape of the job; it stays the same over all attempts of a run."""

    nodes: Positive = Field(default=1, description="Number of nodes.")
    gpus_per_node: Positive = Field(
        default=1,
        description="GPUs of each node; without a GPU on the local backend: CPU processes.",
    )
    cpus_per_gpu: Positive | None = Field(
        default=None, description="CPU cores for each GPU; null = the backend's default."
    )
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="Memory of each node in GB; null = the backend's default."
    )
    time_limit: Annotated[int | None, BeforeValidator(_check_duration), _DURATION_SCHEMA] = Field(
        default=None,
        description="Longest time of one attempt: 4h, 90m, 1-12:00:00 or seconds; "
        "null = the backend's default.",
    )


class CheckpointSection(Section):
    """Where checkpoints go and how often they are written."""

    uri: Text = Field(
        default="./runs", description="Root of the run directories: a folder or s3://bucket/prefix."
    )
    every_steps: Positive | None = Field(
        default=None, description="Optimizer steps between checkpoints."
    )
    every_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="Minutes between checkpoints; 30 if every_steps is not given either.",
    )
    max_unsaved: Annotated[int | None, BeforeValidator(_check_duration), _DURATION_SCHEMA] = Field(
        default=None,
        description="How long a run trains on while no checkpoint can be stored (30m, 2h): then it "
        "tries for a while longer, frees its GPUs and waits for the storage. null = four "
        "intervals, at least 30 minutes.",
    )
    keep_last: Positive = Field(
        default=2, description="Verified checkpoints that are kept, at least 1."
    )
    keep_best: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="Checkpoints that are kept besides, whatever comes later: those with the "
        "lowest loss on data.eval. A step that belongs to them is saved once it is evaluated.",
    )
    local_dir: Text | None = Field(
        default=None,
        description="Folder on the node's own disk that gets a copy of each checkpoint: a faster "
        "source after a restart there, and enough for a commit where the site file says so.",
    )


class PreemptionSection(Section):
    """What happens when the resources are taken away."""

    grace_s: Annotated[float, Field(gt=0, le=86400)] = Field(
        default=60.0, description="Seconds from the notice to the kill."
    )
    signals: Any = Field(
        default=None,
        deprecated=True,
        description="SIGTERM, SIGUSR1 and SIGUSR2 are each taken as a notice.",
    )
    max_failures_without_progress: Positive = Field(
        default=3,
        description="Failures in a row without a new checkpoint before the run is given up.",
    )


class ResumeSection(Section):
    """What a resume accepts."""

    versions: Literal["strict", "warn"] = Field(
        default="warn",
        description="Other library versions at a resume: refused (strict) or reported.",
    )


class JobSpec(Section):
    """A job file as it stands, checked; paths are still as the user wrote them.

    Its fields are right by themselves; `checks` compares them, `reading.job` does both.
    """

    name: Annotated[Text, AfterValidator(_check_name)] = Field(
        description=f"Name of the run: {NAME_RULE}."
    )
    backend: Literal["local", "slurm", "kubernetes"] = Field(
        default="local", description="Where the job runs."
    )
    model: ModelSection = Field(description="The base model.")
    quantization: QuantizationSection | None = Field(
        default_factory=qlora,
        description="Fields of BitsAndBytesConfig; left out = 4-bit NF4 with double "
        "quantization and bfloat16; null = not quantized.",
    )
    lora: LoraSection = Field(
        default_factory=LoraSection,
        description="Fields of LoraConfig; target_modules may be llm, llm+vision or llm+merger.",
    )
    data: DataSection = Field(description="Training and evaluation data.")
    training: TrainingSection = Field(
        default_factory=TrainingSection,
        description="Fields of TrainingArguments, without those that are set elsewhere.",
    )
    deepspeed: Annotated[DeepSpeedSection, BeforeValidator(_as_block)] = Field(
        default_factory=DeepSpeedSection,
        description="A ZeRO stage, or a DeepSpeed JSON file.",
    )
    resources: ResourcesSection = Field(
        default_factory=ResourcesSection, description="The shape of the job."
    )
    checkpoint: CheckpointSection = Field(
        default_factory=CheckpointSection, description="Where and how often to save."
    )
    preemption: PreemptionSection = Field(
        default_factory=PreemptionSection, description="What happens at a notice."
    )
    resume: ResumeSection = Field(
        default_factory=ResumeSection, description="What a resume accepts."
    )
    code: Names = Field(default=(), description="Your code: its digest is compared at a resume.")
    env: dict[str, str] = Field(
        default_factory=dict, description="Variables of the run: plain values, no secrets."
    )
    secrets: Names = Field(
        default=(),
        description="Names of variables taken from your environment at submit, kept apart.",
    )
    slurm: SlurmSection = Field(
        default_factory=SlurmSection, description="What the job asks of Slurm."
    )
    kubernetes: KubernetesSection = Field(
        default_factory=KubernetesSection, description="What the job asks of Kubernetes."
    )
    python: Text | None = Field(
        default=None, description="Interpreter of the run; null = the one that submits."
    )
    max_length: Positive | None = Field(
        default=None, description="Tokens of the longest sample; null = the model's limit."
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """Fields of earlier versions that the file still gives, and what holds instead."""
        for block in type(self).model_fields:
            section = getattr(self, block)
            if isinstance(section, Section):
                for name in section.model_fields_set:
                    info = type(section).model_fields[name]
                    if info.deprecated:
                        yield f"{block}.{name}", info.description or ""

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, data: Any) -> Any:
        """A block whose lines are all commented out is as good as absent."""
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k not in _MAY_BE_EMPTY}
