"""A job's `slurm:` block and the site's: defaults filled in, limits held. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.faults import Fault, Path
from orchestrator.config.models.job import JobSpec
from orchestrator.config.models.site import SiteConfig
from orchestrator.config.models.site_slurm import GpuType, Limit, SlurmSite
from orchestrator.config.models.slurm import sbatch_faults
from orchestrator.config.values.suggest import did_you_mean, listed

_PATHS: Mapping[str, Path] = {
    "time_limit": ("resources", "time_limit"),
    "nodes": ("resources", "nodes"),
    "gpus_per_node": ("resources", "gpus_per_node"),
    "gpus": ("resources", "nodes"),
    "cpus_per_gpu": ("resources", "cpus_per_gpu"),
    "memory_gb": ("resources", "memory_gb"),
    "grace_s": ("preemption", "grace_s"),
}
"""Where a job says what a limit is about; the other fields stand in `slurm:`."""
_UNITS: Mapping[str, str] = {"time_limit": " s", "grace_s": " s", "signal_s": " s"}


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """What of a Slurm job the site decides with."""

    block: Mapping[str, Any]
    """The resolved `slurm:` block; every name is there, None where nothing was said."""
    env: Mapping[str, str]
    grace_s: float
    python: str | None


def resolve_slurm(
    job: JobSpec, site: SiteConfig, *, environ: Mapping[str, str], template: str | None
) -> SlurmJob:
    """The job with the site's defaults. `environ`: the submitter's variables.

    What is wrong is found by `slurm_faults`.
    """
    given, rules = job.slurm, site.slurm
    gpu = _gpu(job, rules)
    block = {
        **given.model_dump(mode="json"),
        "partition": _partition(job, rules),
        "qos": given.qos or rules.qos,
        "account": given.account or rules.account,
        "constraint": _both(given.constraint, gpu.constraint if gpu else None),
        "gpu_request": rules.gpu_request,
        "gres": rules.gres,
        "gpu_type": gpu.type if gpu else given.gpu_type or rules.gpu_type,
        "srun_options": [*rules.srun_options, *given.srun_options],
        "modules": list(rules.modules),
        "setup": list(rules.setup),
        "wrap": _wrap(rules),
        "template": template,
        "templates_dir": site.templates_dir,
    }
    carried = {name: environ[name] for name in rules.carry_env if name in environ}
    return SlurmJob(
        block=block,
        env={**rules.env, **carried, **job.env},
        grace_s=_grace(job, rules),
        python=job.python or (rules.container.python if rules.container else None),
    )


def slurm_faults(job: JobSpec, site: SiteConfig) -> tuple[Fault, ...]:
    """What the site refuses, each with the reason."""
    rules = site.slurm
    return (
        *_unknown(job, rules),
        *sbatch_faults(job.slurm.options, rules.allow_options),
        *_grace_faults(job, rules),
        *(fault for limit in rules.limits for fault in _limit_faults(limit, job, rules)),
    )


def _partition(job: JobSpec, rules: SlurmSite) -> str | None:
    gpu = _gpu(job, rules)
    return job.slurm.partition or (gpu.partition if gpu else None) or rules.partition


def _gpu(job: JobSpec, rules: SlurmSite) -> GpuType | None:
    wanted = job.slurm.gpu_type or rules.gpu_type
    return next((entry for entry in rules.gpu_types if entry.name == wanted), None)


def _both(one: str | None, other: str | None) -> str | None:
    """Two constraints that must both hold."""
    if one is None or other is None:
        return one or other
    return f"({one})&{other}" if "|" in one else f"{one}&{other}"


def _wrap(rules: SlurmSite) -> list[str]:
    """Words before the interpreter, so that it runs in the site's container."""
    return [] if rules.container is None else [*rules.container.command, rules.container.image]


def _graces(job: JobSpec, rules: SlurmSite) -> list[tuple[float, str]]:
    """The grace of each partition that the job may land in."""
    names = (_partition(job, rules) or "").split(",")
    entries = [p for p in rules.partitions if p.name in names]
    return [(p.grace_s, p.name) for p in entries if p.grace_s is not None]


def _grace(job: JobSpec, rules: SlurmSite) -> float:
    """What the job says, else what its partition gives, else the default."""
    known = _graces(job, rules)
    if known and "grace_s" not in job.preemption.model_fields_set:
        return min(known)[0]
    return job.preemption.grace_s


def _unknown(job: JobSpec, rules: SlurmSite) -> Iterator[Fault]:
    partitions = [p.name for p in rules.partitions]
    for name in (job.slurm.partition or "").split(","):
        if name and partitions and name not in partitions:
            hint = did_you_mean(name, partitions) or f"there are {listed(partitions)}"
            yield Fault(("slurm", "partition"), f"the site has no partition {name}", hint)
    types = [t.name for t in rules.gpu_types]
    wanted = job.slurm.gpu_type
    if wanted and types and wanted not in types:
        hint = did_you_mean(wanted, types) or f"there are {listed(types)}"
        yield Fault(("slurm", "gpu_type"), f"the site has no GPUs of type {wanted}", hint)


def _grace_faults(job: JobSpec, rules: SlurmSite) -> Iterator[Fault]:
    known = _graces(job, rules)
    if not known or "grace_s" not in job.preemption.model_fields_set:
        return
    least, name = min(known)
    if job.preemption.grace_s > least:
        yield Fault(
            ("preemption", "grace_s"),
            f"partition {name} gives {least:g} s from the notice to the kill, "
            f"not {job.preemption.grace_s:g}",
            f"use at most {least:g}, or leave it out",
        )


def _values(job: JobSpec, rules: SlurmSite) -> Mapping[str, Any]:
    """What the job asks for in each field that can be limited."""
    shape, given = job.resources, job.slurm
    return {
        "time_limit": shape.time_limit,
        "nodes": shape.nodes,
        "gpus_per_node": shape.gpus_per_node,
        "gpus": shape.nodes * shape.gpus_per_node,
        "cpus_per_gpu": shape.cpus_per_gpu,
        "memory_gb": shape.memory_gb,
        "grace_s": _grace(job, rules),
        "partition": _partition(job, rules),
        "qos": given.qos or rules.qos,
        "account": given.account or rules.account,
        "reservation": given.reservation,
        "constraint": given.constraint,
        "gpu_type": given.gpu_type or rules.gpu_type,
        "signal_s": given.signal_s,
        "options": [option.partition("=")[0].removeprefix("--") for option in given.options],
    }


def _limit_faults(limit: Limit, job: JobSpec, rules: SlurmSite) -> Iterator[Fault]:
    if limit.partition and limit.partition not in (_partition(job, rules) or "").split(","):
        return
    value = _values(job, rules)[limit.field]
    path = _PATHS.get(limit.field, ("slurm", limit.field))
    unit = _UNITS.get(limit.field, "")
    if value is None or value == []:
        if limit.required:
            yield Fault(path, f"must be given: {limit.reason}", _example(limit, unit))
    elif limit.max is not None and value > limit.max:
        said = f"{limit.field} {value:g}{unit} is more than {limit.max:g}{unit}: {limit.reason}"
        yield Fault(path, said, f"use at most {limit.max:g}{unit}")
    elif limit.min is not None and value < limit.min:
        said = f"{limit.field} {value:g}{unit} is less than {limit.min:g}{unit}: {limit.reason}"
        yield Fault(path, said, f"use at least {limit.min:g}{unit}")
    elif limit.allowed is not None:
        yield from _not_allowed(limit, value, path)


def _not_allowed(limit: Limit, value: Any, path: Path) -> Iterator[Fault]:
    allowed = limit.allowed or ()
    asked = value if isinstance(value, list) else str(value).split(",")
    for one in asked:
        if one not in allowed:
            said = f"{limit.field} {one} is not allowed: {limit.reason}"
            yield Fault(path, said, f"use {listed(allowed)}")


def _example(limit: Limit, unit: str) -> str | None:
    if limit.allowed:
        return f"use {listed(limit.allowed)}"
    return f"at most {limit.max:g}{unit}" if limit.max is not None else None
