"""The `slurm:` block of a job file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from orchestrator.config.faults import Fault
from orchestrator.config.models.fields import Section, Text, Texts, bundle, refuse
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


def _srun(values: tuple[str, ...]) -> tuple[str, ...]:
    faults = [
        Fault((i,), *fault)
        for i, option in enumerate(values)
        if (fault := option_fault(option, SRUN)) is not None
    ]
    if faults:
        raise bundle(tuple(faults))
    return values


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
    srun_options: Annotated[Texts, AfterValidator(_srun)] = Field(
        default=(), description="Further options of srun."
    )


def sbatch_faults(options: tuple[str, ...], more: tuple[str, ...]) -> list[Fault]:
    """What is wrong with a job's `slurm.options`; `more`: names that the site allows besides."""
    allowed = SBATCH | set(more)
    return [
        Fault(("slurm", "options", i), *fault)
        for i, option in enumerate(options)
        if (fault := option_fault(option, allowed)) is not None
    ]
