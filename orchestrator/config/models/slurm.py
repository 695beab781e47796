"""The `slurm:` block of a job file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from orchestrator.config.faults import Fault
from orchestrator.config.fields import Section, Text, Texts, bundle, refuse, without_nulls
from orchestrator.config.values.sbatch import SBATCH, SRUN, TOKEN, option_fault

_WORD_HINT = "letters, digits and _.,:;+@%/[]()*&|!=- only, without blanks"


def check_word(value: str) -> str:
    """One word of a directive, or pydantic's error."""
    if not TOKEN.fullmatch(value):
        raise refuse(f"{value[:80]!r} cannot stand in a directive", _WORD_HINT)
    return value


def _digits_as_text(value: Any) -> Any:
    """An account or comment of digits only is a number in YAML."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else value


Word = Annotated[
    Text,
    BeforeValidator(_digits_as_text),
    AfterValidator(check_word),
    WithJsonSchema({"type": ["string", "integer"], "minLength": 1}),
]


def _options(allowed: Collection[str] | None) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        faults = [
            Fault((i,), *fault)
            for i, option in enumerate(values)
            if (fault := option_fault(option, allowed)) is not None
        ]
        if faults:
            raise bundle(tuple(faults))
        return values

    return check


SrunOptions = Annotated[Texts, AfterValidator(_options(SRUN))]
PlainOptions = Annotated[Texts, AfterValidator(_options(None))]
"""Whatever is not set by this program: the last barrier before a batch file."""
GpuRequest = Literal["gpus-per-node", "gres", "none"]


class SlurmSection(Section):
    """What a job asks of Slurm; where the site has a default, it holds for what is left out."""

    partition: Word | None = Field(default=None, description="Partition, or several: a,b.")
    qos: Word | None = Field(default=None, description="Quality of service.")
    account: Word | None = Field(default=None, description="Account that the job is charged to.")
    reservation: Word | None = Field(default=None, description="Reservation to run in.")
    constraint: Word | None = Field(default=None, description="Features the nodes must have.")
    exclude: Word | None = Field(default=None, description="Nodes to keep away from: gpu[3-5].")
    comment: Word | None = Field(default=None, description="A comment in Slurm, without blanks.")
    gpu_type: Word | None = Field(default=None, description="Type of GPU, as the site names it.")
    signal_s: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None,
        description="Seconds before the time limit at which Slurm gives notice; null = the grace.",
    )
    options: Texts = Field(
        default=(), description="Further options of sbatch: --name or --name=value."
    )
    srun_options: SrunOptions = Field(default=(), description="Further options of srun.")


class SlurmSettings(SlurmSection):
    """The resolved block: what of the job and the site the batch file needs."""

    model_config = ConfigDict(extra="ignore")

    gpu_request: GpuRequest = Field(
        default="gpus-per-node",
        description="How GPUs are asked for; none: by the constraint, or whole nodes.",
    )
    gres: Word = Field(default="gpu", description="Name of the generic resource, for --gres.")
    options: PlainOptions = ()
    srun_options: PlainOptions = ()

    _without_nulls = model_validator(mode="before")(without_nulls)


def sbatch_faults(options: tuple[str, ...], more: tuple[str, ...]) -> list[Fault]:
    """What is wrong with a job's `slurm.options`; `more`: names that the site allows besides."""
    allowed = SBATCH | set(more)
    return [
        Fault(("slurm", "options", i), *fault)
        for i, option in enumerate(options)
        if (fault := option_fault(option, allowed)) is not None
    ]
