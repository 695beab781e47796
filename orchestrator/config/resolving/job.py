"""JobSpec to ResolvedJob: every default filled in, every path absolute. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.config.arguments.base import Arguments
from orchestrator.config.checks.job import scheme
from orchestrator.config.checks.training import CHECKPOINTING, given_quantization, max_steps
from orchestrator.config.faults import Fault, raise_faults
from orchestrator.config.models.job import JobSpec
from orchestrator.config.models.library import QLORA
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.resolving import deepspeed
from orchestrator.config.resolving.slurm import SlurmJob, resolve_slurm, slurm_faults
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)

DEFAULT_EVERY_MINUTES = 30.0
"""Minutes between checkpoints where the job names no interval."""

_FILLED: Mapping[str, tuple[str, ...]] = {
    "training": (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
        *("lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "seed"),
        *("fp16", "eval_strategy", "per_device_eval_batch_size", "dataloader_num_workers"),
    ),
    "lora": ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora"),
}
"""Arguments whose library default is written out, because the result depends on them."""


def resolve(  # noqa: PLR0913
    job: JobSpec,
    *,
    base_dir: Path,
    site: SiteConfig,
    from_hub: bool = False,
    deepspeed_config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    template: str | None = None,
) -> ResolvedJob:
    """Everything that an attempt needs to know.

    `base_dir` is the absolute folder that relative paths start from, `deepspeed_config` the
    parsed file that `deepspeed.config` names; `from_hub`: `model.path` is an id on the hub and
    no folder; `environ` are the submitter's variables, `template` is the user's own file.
    Raises JobFaults if the DeepSpeed file contradicts the job, if it is missing, if a model of
    the hub has no revision, or for what the site refuses.
    """
    found = [*model_faults(job, from_hub=from_hub), *site_faults(job, site)]
    if job.deepspeed.config is not None:
        found += deepspeed_faults(job, deepspeed_config)
    raise_faults(found)
    config = _deepspeed(job, deepspeed_config)
    slurm = _slurm(job, site, environ, template)
    return ResolvedJob(
        name=job.name,
        backend=job.backend,
        model=ModelSpec(
            path=job.model.path if from_hub else absolute(job.model.path, base_dir),
            revision=job.model.revision,
            snapshot=job.model.snapshot,
            attention=job.model.attention,
        ),
        quantization=_quantization(job),
        lora=_lora(job),
        data=_data(job, base_dir),
        training=resolved_training(job),
        hang_s=job.training.hang_s,
        deepspeed=config,
        zero_stage=config["zero_optimization"]["stage"],
        resources=_resources(job),
        checkpoint=_checkpoint(job, base_dir, site),
        preemption=PreemptionSpec(
            grace_s=slurm.grace_s,
            max_failures_without_progress=job.preemption.max_failures_without_progress,
        ),
        batch=batch_plan(job),
        resume_versions=job.resume.versions,
        code=tuple(absolute(path, base_dir) for path in job.code),
        env=dict(slurm.env),
        secrets=job.secrets,
        python=_python(slurm.python, base_dir),
        max_length=job.max_length,
        slurm=dict(slurm.block),
        kubernetes=_kubernetes(job, site, template),
    )


def site_faults(job: JobSpec, site: SiteConfig) -> tuple[Fault, ...]:
    """What the site refuses of a job."""
    return slurm_faults(job, site) if job.backend == "slurm" else ()


def _kubernetes(job: JobSpec, site: SiteConfig, template: str | None) -> dict[str, Any]:
    """The job's block upon the site's, with where its template is to be found."""
    given = job.kubernetes.model_dump(mode="json", exclude_unset=True)
    if job.backend != "kubernetes":
        return given
    said = site.kubernetes.model_dump(mode="json", exclude_defaults=True)
    found = {"template": template, "templates_dir": site.templates_dir}
    return {**said, **given, **{k: v for k, v in found.items() if v is not None}}


def _slurm(
    job: JobSpec, site: SiteConfig, environ: Mapping[str, str], template: str | None
) -> SlurmJob:
    """The job with the site's settings for Slurm; on another backend, as it stands."""
    if job.backend == "slurm":
        return resolve_slurm(job, site, environ=environ, template=template)
    block = job.slurm.model_dump(mode="json", exclude_unset=True)
    return SlurmJob(block, job.env, job.preemption.grace_s, job.python)


def model_faults(job: JobSpec, *, from_hub: bool) -> tuple[Fault, ...]:
    """A model of the hub needs a revision: without one, attempts could load other weights."""
    if job.model.revision is not None or not from_hub:
        return ()
    return (
        Fault(
            ("model", "path"),
            f"{job.model.path} is no folder, and a model of the hub needs a revision",
            "add revision: COMMIT, so that each attempt loads the same weights",
        ),
    )


def deepspeed_faults(job: JobSpec, config: Any) -> tuple[Fault, ...]:
    """Contradictions between a DeepSpeed file and the job; paths start at the file's top."""
    return deepspeed.faults(
        config,
        training=resolved_training(job),
        batch=batch_plan(job),
        quantized=bool(_quantization(job)),
        stage=job.deepspeed.stage,
    )


def absolute(path: str, base_dir: Path) -> str:
    """An absolute, normalised path; `~` is the home folder, links are not followed."""
    home = os.path.expanduser(path)  # noqa: PTH111 - an unknown user is no fault here
    return os.path.normpath(Path(base_dir, home))


def batch_plan(job: JobSpec) -> BatchPlan:
    """The batch plan as submitted."""
    training = _filled("training", job.training)
    return BatchPlan(
        micro=training["per_device_train_batch_size"],
        accumulation=training["gradient_accumulation_steps"],
        world_size=job.resources.nodes * job.resources.gpus_per_node,
    )


def resolved_training(job: JobSpec) -> dict[str, Any]:
    """The training block with the values that decide the result written out.

    One spelling for checkpointing, never reentrant; `data_seed` follows `seed`; the loss is
    logged at each step; bf16 unless the job or its compute type says otherwise.
    """
    training = {n: v for n, v in _filled("training", job.training).items() if v is not None}
    training.pop("hang_s", None)
    if max_steps(training) is None:
        training.pop("max_steps", None)
    for name, value in {"logging_steps": 1, "report_to": "tensorboard"}.items():
        training.setdefault(name, value)
    training["logging_nan_inf_filter"] = False
    training.setdefault("data_seed", training["seed"])
    training.setdefault("bf16", _bf16(job))
    return _checkpointing(training)


def _filled(block: str, section: Arguments) -> dict[str, Any]:
    return {**section.model_dump(include=set(_FILLED[block])), **section.given()}


def _bf16(job: JobSpec) -> bool:
    compute = _quantization(job).get("bnb_4bit_compute_dtype", "bfloat16")
    return not job.training.fp16 and compute == "bfloat16"


def _checkpointing(training: Mapping[str, Any]) -> dict[str, Any]:
    new, old = CHECKPOINTING
    mine = (new, old, f"{new}_kwargs", f"{old}_kwargs")
    result = {name: value for name, value in training.items() if name not in mine}
    result[new] = training.get(new, training.get(old, False))
    if result[new]:
        kwargs = training.get(f"{new}_kwargs", training.get(f"{old}_kwargs", {}))
        result[f"{new}_kwargs"] = {**kwargs, "use_reentrant": False}
    return result


def _quantization(job: JobSpec) -> dict[str, Any]:
    given = given_quantization(job)
    if given.get("load_in_4bit"):
        return {**QLORA, **{name: value for name, value in given.items() if value is not None}}
    return given if given.get("load_in_8bit") else {}


def _lora(job: JobSpec) -> dict[str, Any]:
    lora = _filled("lora", job.lora)
    if lora.get("target_modules") is None:
        lora["target_modules"] = "llm"
    return lora


def _data(job: JobSpec, base_dir: Path) -> DataSpec:
    data = job.data
    return DataSpec(
        train=absolute(data.train, base_dir),
        eval=None if data.eval is None else absolute(data.eval, base_dir),
        media_root=None if data.media_root is None else absolute(data.media_root, base_dir),
        fingerprint=data.fingerprint,
        policy=data.policy,
        max_replaced=data.max_replaced,
    )


def _resources(job: JobSpec) -> Resources:
    given = job.resources
    return Resources(
        nodes=given.nodes,
        gpus_per_node=given.gpus_per_node,
        cpus_per_gpu=given.cpus_per_gpu,
        memory_gb=given.memory_gb,
        time_limit_s=given.time_limit,
    )


def _checkpoint(job: JobSpec, base_dir: Path, site: SiteConfig) -> CheckpointSpec:
    given = job.checkpoint
    minutes = given.every_minutes
    if minutes is None and given.every_steps is None:
        minutes = DEFAULT_EVERY_MINUTES
    return CheckpointSpec(
        uri=_uri(given.uri, base_dir),
        every_steps=given.every_steps,
        every_minutes=minutes,
        max_unsaved_s=given.max_unsaved,
        keep_last=given.keep_last,
        keep_best=given.keep_best,
        local_dir=given.local_dir,
        survives=site.survives,
    )


def _uri(uri: str, base_dir: Path) -> str:
    kind = scheme(uri)
    if kind is None:
        return absolute(uri, base_dir)
    if kind == "file":
        return os.path.normpath(unquote(urlsplit(uri).path))
    return uri.rstrip("/")


def _python(python: str | None, base_dir: Path) -> str | None:
    return python if python is None or "/" not in python else absolute(python, base_dir)


def _deepspeed(job: JobSpec, user: Mapping[str, Any] | None) -> dict[str, Any]:
    fp16 = job.training.fp16 or job.training.fp16_full_eval
    if user is None:
        return deepspeed.from_stage(job.deepspeed.stage or deepspeed.DEFAULT_STAGE, fp16=fp16)
    return deepspeed.merged(user, job.deepspeed.stage, fp16=fp16)
