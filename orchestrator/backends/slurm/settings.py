"""The `slurm:` block of a resolved job: the site's and the user's settings, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from orchestrator.config.values.sbatch import OURS, TOKEN
from orchestrator.errors import UserError

GpuRequest = Literal["gpus-per-node", "gres", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """What of `slurm:` the batch file needs; None = Slurm's own default."""

    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    gpu_request: GpuRequest = "gpus-per-node"
    """How GPUs are asked for; none: by the constraint, or whole nodes."""
    gres: str = "gpu"
    """Name of the generic resource, where GPUs are asked for by `gres`."""
    gpu_type: str | None = None
    signal_s: int | None = None
    """Seconds before the time limit at which Slurm gives notice; None = the grace."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, `--name` or `--name=value`."""
    srun_options: tuple[str, ...] = ()


def parse_settings(block: Mapping[str, Any]) -> SlurmSettings:
    """Check a `slurm:` block. Raises UserError naming the field."""
    known = {f.name for f in fields(SlurmSettings)}
    values: dict[str, Any] = {}
    for name, value in block.items():
        if value is None or name not in known:
            continue
        values[name] = _value(name, value)
    return SlurmSettings(**values)


def _value(name: str, value: Any) -> Any:
    if name in ("options", "srun_options"):
        return _options(name, value)
    if name == "signal_s":
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            raise UserError(f"slurm.signal_s: {value!r} is no number of seconds from 1 to 65535")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"slurm.{name}: {value!r} is no text")
    if name == "gpu_request" and value not in get_args(GpuRequest):
        raise UserError(
            f"slurm.gpu_request: {value!r}", hint=f"one of {', '.join(get_args(GpuRequest))}"
        )
    return value


def _options(name: str, value: Any) -> tuple[str, ...]:
    """The last barrier: what the site and the job may give was checked when it was resolved."""
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise UserError(f"slurm.{name}: a list of options is wanted, for example [--nice=10]")
    for option in value:
        word, _, rest = option.partition("=")
        if not word.startswith("--") or not all(TOKEN.fullmatch(w) for w in (word, rest or "x")):
            raise UserError(
                f"slurm.{name}: {option!r} is no plain option",
                hint="write --name or --name=value, without spaces or quotes",
            )
        if word.removeprefix("--") in OURS:
            raise UserError(f"slurm.{name}: {option} is set by qvl-orchestrate")
    return tuple(value)
