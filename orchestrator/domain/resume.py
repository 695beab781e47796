"""The resume contract: what must be equal for a continuation to be the same run.

Facts are a flat mapping of dotted names to plain values, stored in every manifest and
collected anew by every attempt (`run_directory.resume_facts`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Facts = Mapping[str, Any]

FREE = (
    "package.*",
    "python.*",
    "config.name",
    "config.backend",
    "config.training.logging_*",
    "config.training.report_to",
    "config.training.dataloader_num_workers",
    "config.training.dataloader_prefetch_factor",
    "config.training.dataloader_pin_memory",
    "config.training.disable_tqdm",
    "config.hang_s",
    "config.checkpoint.*",
    "config.preemption.*",
    "config.resume_versions",
    "config.resources.*",
    "config.env.*",
    "config.secrets",
    "config.python",
    "config.slurm.*",
    "config.kubernetes.*",
    "config.schema",
)
"""May differ silently (shown as notes): logging, save interval, retention, where it runs."""

COMPARED_APART = (
    "config.training.per_device_train_batch_size",
    "config.training.gradient_accumulation_steps",
    "config.batch.*",
    "config.deepspeed.*batch*",
    "config.deepspeed.gradient_accumulation_steps",
    "config.model.*",
    "config.data.*",
    "config.quantization.*",
    "config.zero_stage",
    "config.code",
    "base_digest",
    "base_device",
    "loss_tolerance",
    "attention",
    "device.*",
)
"""Covered by the global batch, by content digests, or by the ranks once they have loaded."""

_NEVER = ("world.", "checkpoint_format", "model.", "quantization.")
"""No flag allows these: the stored state has no meaning with another value."""

ONLY_THERE = "the state of a checkpoint is only valid under the same conditions"
"""Words of every refusal that no flag undoes."""

_TITLES = {
    "world.nodes": "number of nodes",
    "world.gpus_per_node": "GPUs per node",
    "world.zero_stage": "ZeRO stage",
    "global_batch": "global batch size",
    "code.digest": "user code",
    "data.train": "training data index",
    "data.eval": "evaluation data index",
    "data.media": "media files of the data",
    "model.digest": "base model files",
    "model.revision": "base model revision",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between the checkpoint and this attempt."""

    field: str
    saved: Any
    now: Any
    refused: bool
    flag: str | None
    """The flag that would allow it; None if nothing would."""

    def line(self) -> str:
        """`- GPUs per node: checkpoint 2, now 4`"""
        title = _TITLES.get(self.field, self.field)
        return f"{title}: checkpoint {_show(self.saved)}, now {_show(self.now)}"


def compare(
    saved: Facts, now: Facts, *, versions: str = "warn", allowed: Collection[str] = ()
) -> list[Difference]:
    """All differences, refused ones first. `allowed`: names or patterns that may differ."""
    found = []
    for name in sorted(set(saved) | set(now)):
        if saved.get(name) == now.get(name) or _covered(name, COMPARED_APART):
            continue
        found.append(_difference(name, saved.get(name), now.get(name), versions, allowed))
    return sorted(found, key=lambda d: (not d.refused, d.field))


def _difference(
    name: str, saved: Any, now: Any, versions: str, allowed: Collection[str]
) -> Difference:
    if name.startswith("version."):
        permitted = versions == "warn" or _permits(allowed, name, "versions")
        return Difference(name, saved, now, not permitted, "versions")
    if _covered(name, FREE):
        return Difference(name, saved, now, False, None)
    if name.startswith(_NEVER):
        return Difference(name, saved, now, True, None)
    flag = name.removeprefix("config.")
    return Difference(name, saved, now, not _permits(allowed, name, flag), flag)


def _permits(allowed: Collection[str], name: str, flag: str) -> bool:
    group = name.split(".", 1)[0]
    return any(a in (name, flag, group) or fnmatchcase(flag, a) for a in allowed)


def _covered(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refusal(differences: Sequence[Difference], checkpoint: str) -> str | None:
    """What a person reads if anything is refused, else None: the diff and the cures."""
    refused = [d for d in differences if d.refused]
    if not refused:
        return None
    lines = [f"{checkpoint} was made under other conditions:"]
    lines += [f"  - {d.line()}" for d in refused]
    flags = sorted({d.flag for d in refused if d.flag})
    if any(d.flag is None for d in refused):
        lines.append(f"  {ONLY_THERE}: restore them,")
        lines.append("  or take only its weights: --restart-from weights")
    else:
        lines.append("  to go on all the same: " + " ".join(f"--allow-change {f}" for f in flags))
        if "versions" in flags:
            lines.append("  or set `python:` in job.yaml to the interpreter of the run")
    return "\n".join(lines)


def notes(differences: Sequence[Difference]) -> list[str]:
    """Lines for what differs and is allowed."""
    return [d.line() for d in differences if not d.refused]


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Nested mappings as dotted names; lists and plain values stay values."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    if not value:
        return {}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}"))
    return flat


def _show(value: Any) -> str:
    if value is None:
        return "(none)"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:24]}…{text[-12:]}"
