"""What a batch template is rendered with. Pure."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.settings import slurm_settings
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.config.models.slurm import SlurmSettings

MAX_SPEC_BYTES = 100_000
"""The spec travels as one environment variable; Linux takes 128 KiB for each."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELDS = ("partition", "qos", "account", "reservation", "constraint", "exclude", "comment")


def template_values(job: ResolvedJob, spec: TrainSpec) -> Mapping[str, object]:
    """Every name that a template of kind `slurm` may use (see slurm/README.md).

    Raises UserError for what cannot stand in a batch file.
    """
    settings = slurm_settings(job.slurm)
    resources = job.resources
    return {
        "job_name": spec.key,
        "run_id": spec.run_id,
        "name": job.name,
        "nodes": resources.nodes,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": (resources.cpus_per_gpu or 1) * resources.gpus_per_node,
        "options": _options(job, settings),
        "srun_options": list(settings.srun_options),
        "signal_s": signal_s(job, settings),
        "env": _environment(job),
        "python": spec.python,
        "python_path": package_root() or "",
        "spec": _spec_text(spec),
        "slurm": _plain(job.slurm),
    }


def signal_s(job: ResolvedJob, settings: SlurmSettings) -> int:
    """Seconds before the time limit at which Slurm gives notice.

    Slurm may be up to a minute early: with a short limit, a long notice would come at the
    start of each attempt and leave no time to train.
    """
    if settings.signal_s is not None:
        return settings.signal_s
    wanted = math.ceil(job.preemption.grace_s)
    limit = job.resources.time_limit_s
    return wanted if limit is None else min(wanted, max(5, limit // 4))


def _options(job: ResolvedJob, settings: SlurmSettings) -> list[str]:
    """Directives beyond the fixed ones, in a fixed order."""
    found = [f"--{n}={v}" for n in _FIELDS if (v := getattr(settings, n)) is not None]
    found += gpu_options(job.resources.gpus_per_node, settings)
    if job.resources.memory_gb is not None:
        found.append(f"--mem={math.ceil(job.resources.memory_gb * 1024)}M")
    if job.resources.time_limit_s is not None:
        found.append(f"--time={max(1, math.ceil(job.resources.time_limit_s / 60))}")
    return [*found, *settings.options]


def gpu_options(count: int, settings: SlurmSettings) -> list[str]:
    """How this site wants to be asked for GPUs."""
    amount = f"{settings.gpu_type}:{count}" if settings.gpu_type else f"{count}"
    if settings.gpu_request == "gpus-per-node":
        return [f"--gpus-per-node={amount}"]
    return [f"--gres={settings.gres}:{amount}"] if settings.gpu_request == "gres" else []


def _environment(job: ResolvedJob) -> list[dict[str, str]]:
    """Name and value of each variable of the job file."""
    for name in job.env:
        if not _NAME.fullmatch(name):
            raise UserError(f"env: {name!r} is not a valid name of a variable")
    return [{"name": name, "value": value} for name, value in job.env.items()]


def _spec_text(spec: TrainSpec) -> str:
    text = canonical(to_json(spec)).decode()
    if len(text.encode()) > MAX_SPEC_BYTES:
        raise UserError(
            f"the job's settings take {len(text)} bytes, more than an environment variable holds",
            hint="put long values of env: into a file",
        )
    return text


def package_root() -> str | None:
    """The checkout that this program runs from; None if it is installed (see `python:`)."""
    root = Path(sys.modules["orchestrator"].__path__[0]).resolve().parent
    return str(root) if (root / "pyproject.toml").is_file() else None


def _plain(block: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in block.items()}
