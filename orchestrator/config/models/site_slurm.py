"""The `slurm:` part of site.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from orchestrator.config.faults import Fault
from orchestrator.config.fields import Many, Names, Section, Text, Texts, bundle, refuse
from orchestrator.config.models.slurm import GpuRequest, SrunOptions, Word
from orchestrator.config.values.duration import parse_duration
from orchestrator.config.values.sbatch import OURS
from orchestrator.config.values.sensitive import CURE, secret_name
from orchestrator.config.values.variables import is_reserved_env

LimitField = Literal[
    "time_limit", "nodes", "gpus_per_node", "gpus", "cpus_per_gpu", "memory_gb", "grace_s",
    "partition", "qos", "account", "reservation", "constraint", "gpu_type", "signal_s", "options",
]  # fmt: skip
NUMBERS: frozenset[str] = frozenset(get_args(LimitField)[:7]) | {"signal_s"}
"""Fields with a range; the others have a list of allowed values."""


def _duration(value: Any) -> Any:
    """`1-00:00:00`, `12h` as seconds; numbers stay."""
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except ValueError as fault:
        raise refuse(str(fault)) from None


def _check_names(names: Iterable[str]) -> None:
    """Names of variables that a site may set or carry."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise refuse(f"{name!r} is not a name of a variable", "use letters, digits and _")
        if is_reserved_env(name):
            raise refuse(f"{name} is set by the agent or the scheduler", "remove it")
        if secret_name(name):
            hint = f"users write it themselves: {CURE.format(name=name)}"
            raise refuse(f"{name} looks like a secret by its name", hint)


def _carried(names: tuple[str, ...]) -> tuple[str, ...]:
    _check_names(names)
    return names


def _variables(env: Mapping[str, str]) -> Mapping[str, str]:
    _check_names(env)
    return env


def _not_ours(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name in OURS:
            raise refuse(f"{name} cannot be left to jobs: it is set by qvl-orchestrate")
    return names


Bound = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=1e9)]


class Partition(Section):
    """A partition that jobs may use."""

    name: Word = Field(description="Its name in Slurm.")
    grace_s: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        default=None,
        description="Seconds from the notice to the kill: GraceTime, or KillWait where that is 0.",
    )


class GpuType(Section):
    """How one type of GPU is asked for."""

    name: Word = Field(description="What a job writes as slurm.gpu_type.")
    type: Word | None = Field(
        default=None, description="Its type in Slurm (gpu:TYPE:N); left out: asked for without."
    )
    constraint: Word | None = Field(default=None, description="Feature of its nodes.")
    partition: Word | None = Field(
        default=None, description="Its partition, where the job names none."
    )


class Container(Section):
    """A container that every agent runs in."""

    image: Text = Field(description="Image: a .sif file, or what the runtime takes.")
    command: Texts = Field(
        default=("apptainer", "exec", "--nv"), description="Words that come before the image."
    )
    python: Text | None = Field(
        default=None, description="Interpreter inside, where the job names none."
    )


class Limit(Section):
    """What users may ask for in one field, and why."""

    field: LimitField = Field(description="The field of job.yaml.")
    min: Bound | None = Field(default=None, description="Least value; durations as 1h or 3600.")
    max: Bound | None = Field(default=None, description="Greatest value.")
    allowed: Texts | None = Field(default=None, description="The only values.")
    required: bool = Field(default=False, description="The job must name one.")
    partition: Word | None = Field(default=None, description="Only in this partition.")
    reason: Text = Field(description="Shown to the user who is refused.")

    @model_validator(mode="after")
    def _fits(self) -> Limit:
        number = self.field in NUMBERS
        if number and self.allowed is not None:
            raise refuse(f"{self.field} has a range, no list", "use min and max")
        if not number and (self.min is not None or self.max is not None):
            raise refuse(f"{self.field} has no range", "use allowed = [...]")
        if self.min is None and self.max is None and self.allowed is None and not self.required:
            raise refuse("limits nothing", "give min, max, allowed or required")
        return self


class SlurmSite(Section):
    """What holds for every Slurm job of a site."""

    partitions: Many[Partition] = Field(
        default=(), description="Partitions that jobs may use; none listed: all."
    )
    gpu_types: Many[GpuType] = Field(
        default=(), description="Types of GPU that jobs may name; none listed: all."
    )
    limits: Many[Limit] = Field(default=(), description="Allowed ranges of what users ask for.")
    partition: Word | None = Field(default=None, description="Default partition.")
    account: Word | None = Field(default=None, description="Default account.")
    qos: Word | None = Field(default=None, description="Default quality of service.")
    gpu_type: Word | None = Field(default=None, description="Default type of GPU.")
    gpu_request: GpuRequest = Field(
        default="gpus-per-node",
        description="How GPUs are asked for: --gpus-per-node, --gres, or not at all.",
    )
    gres: Word = Field(default="gpu", description="Name of the generic resource, for --gres.")
    modules: Texts = Field(default=(), description="Environment modules to load, in order.")
    setup: Texts = Field(default=(), description="Lines of shell before the start.")
    container: Container | None = Field(default=None, description="Where the agent runs.")
    env: Annotated[Mapping[str, str], AfterValidator(_variables)] = Field(
        default_factory=dict, description="Variables of every job; a job's own env: wins."
    )
    carry_env: Annotated[Names, AfterValidator(_carried)] = Field(
        default=(), description="Variables taken from the submitter's environment, if set there."
    )
    allow_options: Annotated[Names, AfterValidator(_not_ours)] = Field(
        default=(), description="Further options of sbatch that jobs may give, without the --."
    )
    srun_options: SrunOptions = Field(default=(), description="Options of srun for every job.")

    @model_validator(mode="after")
    def _consistent(self) -> SlurmSite:
        faults = [*_listed(self, "partition", self.partitions)]
        faults += _listed(self, "gpu_type", self.gpu_types)
        for i, limit in enumerate(self.limits):
            known = {p.name for p in self.partitions}
            if limit.partition is not None and known and limit.partition not in known:
                faults.append(
                    Fault(("limits", i, "partition"), f"{limit.partition} is not in partitions")
                )
        if faults:
            raise bundle(tuple(faults))
        return self


def _listed(site: SlurmSite, field: str, entries: tuple[Any, ...]) -> list[Fault]:
    """Names given twice, and a default that is not among them."""
    names = [entry.name for entry in entries]
    found = [
        Fault((f"{field}s", i, "name"), f"{name} is given twice", "remove one of them")
        for i, name in enumerate(names)
        if name in names[:i]
    ]
    default = getattr(site, field)
    if default is not None and names:
        missing = [part for part in default.split(",") if part not in names]
        found += [Fault((field,), f"{part} is not in {field}s") for part in missing]
    return found
