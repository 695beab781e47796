"""The `slurm:` and `kubernetes:` blocks of a resolved job, as the models that they were made with.

Backends read them where a job is rendered. Nothing heavy is imported before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.config.faults import raise_faults

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.config.models.kubernetes import KubernetesSettings
    from orchestrator.config.models.slurm import SlurmSettings

M = TypeVar("M", bound="BaseModel")


def slurm_settings(block: Mapping[str, Any]) -> SlurmSettings:
    """What the batch file needs. Raises JobFileError naming each field that is wrong."""
    from orchestrator.config.models.slurm import SlurmSettings

    return _settings("slurm", SlurmSettings, block)


def kubernetes_settings(block: Mapping[str, Any]) -> KubernetesSettings:
    """What a manifest needs. Raises JobFileError naming each field that is wrong."""
    from orchestrator.config.models.kubernetes import KubernetesSettings

    return _settings("kubernetes", KubernetesSettings, block)


def _settings(name: str, model: type[M], block: Mapping[str, Any]) -> M:
    from orchestrator.config.fields import TEMPLATE_FIELDS
    from orchestrator.config.reading.explain import validated

    given = {field: value for field, value in block.items() if field not in TEMPLATE_FIELDS}
    settings, faults = validated(model, given)
    raise_faults([replace(fault, path=(name, *fault.path)) for fault in faults])
    assert settings is not None, "no settings and no fault"
    return settings
