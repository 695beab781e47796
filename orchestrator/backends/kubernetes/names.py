"""Names, labels and annotations of our objects in a cluster. One place for each."""

from __future__ import annotations

from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError

PREFIX = "qvl-orchestrate"
MANAGED_BY = "app.kubernetes.io/managed-by"
RUN = f"{PREFIX}/run"
"""Label: the run's id, on everything that belongs to it."""
SUBMISSION = f"{PREFIX}/submission"
"""Label: the number of the submission, on a Job and its pods."""
RUN_DIR = f"{PREFIX}/run-dir"
"""Annotation: URI of the run directory."""
WITHDRAWN = f"{PREFIX}/withdrawn"
"""Annotation of the run's ConfigMap: `<submission> <why>`, of a Job that we took back."""
TAKEN_BACK = f"{PREFIX}/taken-back"
"""Annotation of the run's ConfigMap, JSON: why a Job of ours is missing, other than WITHDRAWN,
which is written beside it for controllers of an older version."""
CONTAINER = "train"
"""The container of a pod that is ours; a site's template may add others."""
QUEUE = "kueue.x-k8s.io/queue-name"
COMPONENT = "app.kubernetes.io/component"
SELECTOR = f"{MANAGED_BY}={PREFIX}"
"""Finds everything of ours."""


LONGEST = 63
"""Letters of a DNS label, as names of Jobs and values of labels are."""


def controller_name(run_id: str) -> str:
    """The name of the Job that is a run's controller; as an attempt's it would have number 0.

    Cut short where the run's name is as long as it may be.
    """
    return f"{run_id}-controller"[:LONGEST]


def secret_name(run_id: str) -> str:
    """The name of the run's Secret."""
    return f"{run_id}-env"


def check(spec: TrainSpec) -> None:
    """UserError if a name that is derived from the run's is too long for a cluster."""
    pods = f"{spec.key}-{spec.nodes - 1}"
    for name in (pods, controller_name(spec.run_id), secret_name(spec.run_id)):
        if len(name) > LONGEST:
            raise UserError(
                f"{name} has {len(name)} letters, and Kubernetes takes {LONGEST}",
                hint="give the job a shorter name",
            )


def labels(spec: TrainSpec) -> dict[str, str]:
    """The labels of a submission's Job and pods."""
    return {
        "app.kubernetes.io/name": PREFIX,
        MANAGED_BY: PREFIX,
        RUN: spec.run_id,
        SUBMISSION: str(spec.submission),
    }


def of_run(run_id: str) -> str:
    """Label selector of everything of one run."""
    return f"{SELECTOR},{RUN}={run_id}"


def backend_id(namespace: str, name: str) -> str:
    """`<namespace>/<Job>`: how a submission is called."""
    return f"{namespace}/{name}"


def split_id(identifier: str) -> tuple[str, str]:
    """Inverse of `backend_id`."""
    namespace, _, name = identifier.partition("/")
    return namespace, name


def run_of(name: str) -> tuple[str, int]:
    """Run id and submission number in the name of a Job; number 0 for what is none."""
    run_id, _, number = name.rpartition("-")
    return run_id, int(number) if number.isdecimal() else 0
