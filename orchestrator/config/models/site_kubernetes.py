"""The `[kubernetes]` part of site.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.models.fields import Section, Text

ControllerKind = Literal["process", "job", "deployment", "none"]


class KubernetesSite(Section):
    """What holds for every job on Kubernetes; a job's own `kubernetes:` block wins."""

    controller: ControllerKind = Field(
        default="process",
        description="Who looks after a run: a process that `submit` leaves on its machine, a small "
        "Job a run, the Deployment of k8s/controller.yaml, or none.",
    )
    controller_account: Text = Field(
        default="qvl-orchestrate",
        description="Service account of the `job` kind, with the Role of k8s/rbac.yaml.",
    )
