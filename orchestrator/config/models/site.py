"""The administrator's file, site.yaml: what holds for every job of a site."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.fields import Many, Section, Text, Texts
from orchestrator.config.models.kubernetes import KubernetesSite
from orchestrator.config.models.site_slurm import SlurmSite

_Uid = Annotated[int, Field(ge=0, le=2**32)]


class TrustSite(Section):
    """Whom `controller once` and `controller run` trust besides their own user and root."""

    roots: Texts = Field(
        default=(),
        description="Paths and URIs below which every run directory is believed, whoever wrote it.",
    )
    uids: Many[_Uid] = Field(default=(), description="Owners of run directories that are believed.")


class SiteConfig(Section):
    """Settings of a site; every one has a default."""

    group_sharing: bool = Field(
        default=False, description="Run directories are readable by the group (0750 and 0640)."
    )
    max_parallel_runs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="CPU runs at once on the local backend; further ones wait."
    )
    node_lost_s: Annotated[float, Field(gt=0, le=86400)] = Field(
        default=60.0, description="Seconds without a heartbeat after which a node counts as lost."
    )
    survives: Literal["process", "node"] = Field(
        default="node",
        description="What a committed checkpoint survives: the process, or the node.",
    )
    templates_dir: Text | None = Field(
        default=None,
        description="Folder of the site's templates (slurm/NAME); null = `templates` beside the "
        "site file.",
    )
    allow_user_template: bool = Field(
        default=True, description="Users may submit with --template, which is then marked."
    )
    trust: TrustSite = Field(
        default_factory=TrustSite, description="Whose runs the controllers of the site act upon."
    )
    slurm: SlurmSite = Field(default_factory=SlurmSite, description="What holds on Slurm.")
    kubernetes: KubernetesSite = Field(
        default_factory=KubernetesSite, description="What holds on Kubernetes."
    )
