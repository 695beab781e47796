"""What travels with a submission to the node, and what a rank is told when it may start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.contract.interrupted import Interrupted
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import ResolvedJob


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """All that an agent needs to start; small, plain JSON, free of secrets."""

    run_id: str
    storage: str
    """URI (or absolute path) of the run directory."""
    submission: int
    backend: str
    nodes: int
    gpus_per_node: int
    grace_s: float
    python: str
    """Interpreter of helper and ranks."""
    trainer_module: str = "trainer"
    env: Mapping[str, str] = field(default_factory=dict)
    """Plain variables of the job, added to every rank's environment."""
    secrets_file: str | None = None
    """0600 JSON file of secret variables, read at each attempt."""
    devices_dir: str | None = None
    """Folder of the device locks (local backend); None = the scheduler hands out devices."""
    max_parallel_runs: int = 1
    """Runs that may share this machine's CPU (local backend, no GPU)."""
    scratch_dir: str | None = None
    """Node-local folder for small temporary files; None = the system's."""
    node_lost_s: float = 60.0
    """A peer whose heartbeat stands still for so long is lost."""
    report_s: float = 10.0
    """How often summary.json is renewed while it does nothing but count steps."""
    hang_s: float = 600.0
    """Seconds without a step after which the agent ends the attempt as a failure; 0 = never."""
    allow_change: tuple[str, ...] = ()
    """Fields of the resume contract that may differ in this submission."""
    resolved: str = "resolved.json"
    """The resolved job of this submission, relative to the run directory."""
    signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1", "SIGUSR2")
    """What counts as a notice. Never read; agents of early versions want it to be there."""
    schema: int = 1

    @property
    def key(self) -> str:
        """The submission's idempotency key, by which its job is called: `<run>-<submission>`."""
        return f"{self.run_id}-{self.submission}"


StartKind = Literal["latest", "checkpoint", "weights", "scratch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFrom:
    """Where the user wants a run to start from; kept over all later submissions.

    Commits after record `after_seq` of the log win over `ref`: once the run has made
    progress from the chosen point, it goes on from that progress.
    """

    kind: StartKind = "latest"
    ref: str | None = None
    """A checkpoint's directory in the run directory, or an absolute path elsewhere."""
    after_seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPoint:
    """What this attempt really starts from, chosen after its fence stands."""

    kind: Literal["fresh", "checkpoint", "weights"]
    step: int = 0
    directory: str | None = None
    """Absolute local directory with the verified files."""
    commit_seq: int | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the agent tells its ranks once the attempt is claimed and the checkpoint chosen."""

    run_id: str
    attempt: int
    slot: int
    master_addr: str
    master_port: int
    storage: str
    job: ResolvedJob
    plan: BatchPlan
    start: StartPoint
    grace_s: float
    facts: Mapping[str, Any]
    """The resume contract's facts of this attempt, to be stored in every manifest."""
    log_seq: int
    """Last record of the log that the helper has read."""
    save_seconds: float | None = None
    """What the last save of the run took, in whatever attempt; None = not known."""
    allow_change: tuple[str, ...] = ()
    """Fields of the resume contract that the user allowed to differ."""
    conditions: str = ""
    """Digest of what decides the losses from a given state (domain.recompute.conditions)."""
    expected: tuple[Interrupted, ...] = ()
    """What an earlier attempt computed of the first step, and this one must compute again."""
    schema: int = 1
