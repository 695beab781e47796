"""What is known of a run at one moment: the input of `decide` and of the states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.contract.records import Ending
from orchestrator.domain.verdict import Verdict

BackendPhase = Literal["pending", "running", "gone", "unknown", "absent"]
"""pending: accepted, not started; gone: it ran or was removed; absent: never submitted."""


NO_FAULT: tuple[Ending, ...] = ("preempted",)
"""Endings of a job, before its agent claimed anything, that say that others needed its room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFacts:
    """One attempt; `verdict` is None while it may live."""

    number: int
    submission: int
    verdict: Verdict | None = None
    ended_at: float | None = None
    commits: int = 0
    """Commits by this attempt."""
    oom_can_shrink: bool = True
    """For code 77: whether the batch plan was above its floor."""
    stopping: bool = False
    ending: Ending = ""
    """How the scheduler says that this attempt's job ended, if it was the job's last attempt."""
    lost: bool = False
    """Taken away without a word of its own (see `taken_away`): no failure of the run's."""
    suspended: bool = False
    """A person told its job to wait: that says nothing about the run."""
    silent: bool = False
    """It left neither a verdict nor a notice: `ended_at` says only when it was claimed."""
    started_at: float | None = None
    """When it was claimed, in seconds since the epoch."""
    unsaved: str = ""
    """What the storage said when it took no checkpoint of this attempt any more: then that is
    why it made no progress.
    """
    failed_on: tuple[str, ...] = ()
    """Nodes that crashed or left no word; not those that only followed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The budgets of a run; seconds where the name says so."""

    max_failures_without_progress: int = 3
    max_same_error: int = 3
    max_attempts_without_commit: int = 10
    max_timeouts_without_commit: int = 3
    backoff_base_s: float = 60.0
    backoff_cap_s: float = 1800.0
    jitter: float = 0.0
    """0 to 1, of this run: spreads the back-offs of runs that failed at the same moment."""
    grace_s: float = 60.0
    every_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything `decide` looks at."""

    attempts: tuple[AttemptFacts, ...] = ()
    newest_submission: int = 0
    submitted_at: float | None = None
    unclaimed: int = 0
    """Newest submissions in a row, since a person last said `resume`, that no agent claimed;
    those that the scheduler took away are not counted."""
    taken_unclaimed: int = 0
    """Those that the scheduler took away before an agent claimed anything."""
    last_words: str = ""
    """Why the agents of the newest submission, which claimed nothing, left."""
    peers_missing: bool = False
    """They left because some of them never came."""
    no_room: bool = False
    """The job holds a part of what it needs, and its scheduler has no room for the rest."""
    given_back: int = 0
    """For `absent`: how often the newest submission's job was taken back for want of room."""
    backend: BackendPhase = "absent"
    backend_since: float | None = None
    """For `absent`: since when, where the backend says."""
    ending: Ending = ""
    """For `gone`: how the backend says that the newest submission's job ended."""
    stuck: str = ""
    """For a job that waits for what will not come: a word for it."""
    detail: str = ""
    """The backend's own words on the newest submission's job."""
    requeues_itself: bool = False
    """The backend starts the job again without being asked (Slurm)."""
    done: bool = False
    tombstone: bool = False
    policy: Policy = Policy()
    save_seconds: float | None = None
    """Measured seconds of the last save."""
    other_checkpoint: str = ""
    """After a refusal: the newest kept checkpoint that the last attempt did not start from."""
    damage: str = ""
    """What of the run directory is damaged, so that nothing may be started on its word."""

    @property
    def last(self) -> AttemptFacts | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def words(self) -> str:
        """What the agents of the newest submission said last, and what its backend says."""
        return "; ".join(w for w in (self.last_words, self.detail) if w)

    @property
    def claimed(self) -> bool:
        """Whether an agent has claimed an attempt for the newest submission."""
        return self.last is not None and self.last.submission >= self.newest_submission

    @property
    def preemptions(self) -> int:
        return sum(1 for a in self.attempts if a.verdict and a.verdict.preempted)


def taken_away(ending: Ending, *, silent: bool, started_again: bool, after_lost: bool) -> bool:
    """True if an attempt ended by what the scheduler did, and not by a failure of its own.

    silent: no node left a verdict, nobody saw a notice. started_again: the scheduler itself
    started the same job once more, which it does after a node failure or a kill of its own.
    after_lost: so ended the attempt before in the same job; what the failed node left may then
    kill its successor. A job is `completed` without a word where the batch script outlived
    its nodes.
    """
    if not silent:
        return False
    if started_again or ending in ("preempted", "node-fail", "completed"):
        return True
    return ending == "killed" and after_lost
