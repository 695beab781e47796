"""What every backend offers: five verbs and a value that says what it can do."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from orchestrator.contract.records import Ending
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.domain.facts import BackendPhase
from orchestrator.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the controller may rely on."""

    requeues_itself: bool
    """Starts a preempted job again without being asked."""
    free_to_ask: bool = False
    """Observing costs nothing, so that `status` may do it at every call."""
    backoff_base_s: float = 60.0
    """First waiting time after a failure."""
    poll_s: float = 0.25
    """How often a controller of one run asks for its job."""
    excludes_nodes: bool = False
    """Its nodes have lasting names, and a job may be kept away from some of them."""
    keeps_answers: bool = False
    """An answer on many jobs serves the questions on single ones that follow it."""
    starts_once: bool = False
    """A job is one attempt: what it starts once the attempt has ended stands aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What would be, or was, handed to the backend: `submit --dry-run` prints `text`."""

    number: int
    spec: TrainSpec
    text: str
    template: str | None = None
    template_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A job as the backend sees it now."""

    phase: BackendPhase
    detail: str = ""
    """The backend's own words, for a person."""
    ending: Ending = ""
    """For `gone`: how it ended."""
    restarts: int = 0
    """How often the backend itself started the job again, as far as it says."""
    held: bool = False
    """For `gone`: it has failed, and would start once more if somebody released it."""
    forgotten: bool = False
    """For `unknown`: the backend answers, but does not know the job any more."""
    stuck: str = ""
    """For a job that waits for what will not come: a word for it; the reason is `detail`."""
    no_room: bool = False
    """The job has held a part of what it needs for long enough, and there is no room for the
    rest: it is worth giving back (see `RemembersRuns.give_back`)."""
    given_back: int = 0
    """For `absent`: how often this job was given back, the last time at `since`."""
    lingers: bool = False
    """For `gone`: something else in the job still holds what it was given."""
    suspended: bool = False
    """A person has told the job to wait; for `gone`: it did so once."""
    since: float | None = None
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job that was handed over. Schedulers give ids and names a second time (Slurm once it has
    lost its state), so each question and each act names what no other job can have, too.
    """

    id: str
    key: str
    """Its idempotency key, which stands in its name or label."""
    uid: str = ""
    """What the backend never gives twice; empty where it has no such thing."""

    def __str__(self) -> str:
        return self.id


class Backend(Protocol):
    """One scheduler. Every verb may be repeated; Unreachable if it does not answer.

    A job that is another one by now is forgotten for `observe`, and nobody's to act on.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def prepare(self, job: ResolvedJob, spec: TrainSpec) -> Submission:
        """Pure: the text of the submission."""

    def submit(self, submission: Submission, key: str) -> JobRef:
        """Hand over; a job with this key is found, not doubled."""

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        """Every job asked for, in as few questions as possible."""

    def notify(self, job: JobRef, signal: str, rank: int | None) -> None:
        """Deliver a notice as the scheduler would; to one rank only if `rank` is given."""

    def cancel(self, job: JobRef) -> None:
        """End the job with its grace; no error if it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A run that a backend knows of."""

    run_id: str
    uri: str
    """Its run directory."""


@runtime_checkable
class RemembersRuns(Protocol):
    """A backend that keeps things of a run beside its jobs. Every call may be repeated."""

    def withdraw(self, job: JobRef, why: str) -> None:
        """Take back a job that is stuck; it then counts as `unstartable`, not as cancelled."""

    def give_back(self, job: JobRef, why: str) -> None:
        """Take back a job for which there is no room now; it is `absent` until it is submitted
        again, under the same key.
        """

    def end(self, job: JobRef, ending: Ending, why: str) -> None:
        """Free what a job holds that is `gone` but lingers; it stays `gone`, with this ending."""

    def forget_secrets(self, run_id: str, backend_id: str) -> None:
        """Remove the run's secret values."""

    def forget_run(self, run_id: str, backend_id: str) -> None:
        """Remove everything of the run. Of the id only the place counts: `<place>/`."""

    def start_controller(self, job: ResolvedJob, spec: TrainSpec) -> str:
        """A controller of the run that lives where the jobs do; how it is called there.

        UserError for what is wrong in its template, Unreachable if it cannot be started.
        """

    def discover(self) -> Sequence[Found]:
        """The runs that it knows of, whoever submitted them."""


@runtime_checkable
class Wakes(Protocol):
    """A backend that can say when it is worth looking again."""

    def wait(self, seconds: float, job: JobRef | None = None) -> None:
        """Return when that job (None: any) may have changed, or when the time is over."""


_BACKENDS = {
    "kubernetes": "orchestrator.backends.kubernetes.backend",
    "local": "orchestrator.backends.local.backend",
    "slurm": "orchestrator.backends.slurm.backend",
}


def load_backend(name: str, state_dir: Path) -> Backend:
    """The backend of that name, imported on first use. Raises UserError if there is none."""
    module = _BACKENDS.get(name)
    if module is None:
        known = ", ".join(sorted(_BACKENDS))
        raise UserError(f"backend {name!r} is not available", hint=f"available: {known}")
    return cast(Backend, importlib.import_module(module).create(state_dir))
