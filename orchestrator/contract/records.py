"""Disk types of the run directory: submissions, claims, slots, log records, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.contract.codes import PREEMPTIONS, ExitCode
from orchestrator.contract.jsonio import (
    SUM,
    Json,
    MalformedJson,
    NewerSchema,
    canonical,
    digest,
    from_json,
    to_json,
    without_sum,
)
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.spec import StartFrom, TrainSpec

RecordKind = Literal["fence", "commit", "retire", "bad", "done"]
Ending = Literal[
    "",
    "completed",
    "failed",
    "killed",
    "cancelled",
    "timeout",
    "preempted",
    "node-fail",
    "oom",
    "unstartable",
    "start-error",
    "refused",
    "stopped",
    "storage",
]
"""How a scheduler says that a job ended; empty: it does not say. killed: by a signal that
nobody asked for; preempted and node-fail: for good, the scheduler does not start it again;
oom: killed for the host's memory; unstartable: taken back by us, it waited in vain; start-error:
its command could not be started on that node; refused: by code 78, which is the site's or the
user's mistake whoever left it; stopped: by code 75 or 76, its agent served a notice; storage:
by code 74, its agent found that the run storage takes no writes."""


def ending_by_code(code: int | None) -> Ending:
    """What an agent's exit code alone says of how its job ended; empty where it says nothing."""
    if code in PREEMPTIONS:
        return "stopped"
    return "storage" if code == ExitCode.STORAGE else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRecord:
    """`submissions/<m>.json`: created before the backend is asked."""

    number: int
    key: str
    """Idempotency key; stands in the job's name or label on the backend."""
    token: str
    """Who created this object (tells a lost reply from a lost race)."""
    spec: TrainSpec
    start: StartFrom
    reset_batch_plan: bool = False
    reason: str = "submit"
    """Why it was submitted: submit, requeue, resume."""
    ended: Ending = ""
    """How the backend said that the submission before this one ended."""
    suspended: bool = False
    """A person had told the job before this one to wait (Kubernetes, `suspend`)."""
    template: str | None = None
    """Which template the batch file or manifest was made from: `site:/etc/...`; None = none."""
    template_sha256: str | None = None
    after_attempt: int = 0
    """Newest claim when this was created: all up to it are of earlier submissions."""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionId:
    """`submissions/<m>-id.json`: how the backend calls submission m."""

    number: int
    backend_id: str
    uid: str = ""
    """What the backend never gives to a second job, where it has such a thing."""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRecord:
    """`arrivals/<m>-<r>/<token>.json`: an agent that waits for the other nodes of its job, or
    its last words where it claimed nothing. Written by that agent alone, again and again.
    """

    token: str
    backend_id: str
    slot: int | None
    """The node's number, where its scheduler gives one."""
    host: str
    beat: int = 0
    """Counts up while the agent waits: an arrival that stands still belongs to a dead one."""
    reason: str = ""
    """Empty while it waits; else a short word for why it left."""
    words: str = ""
    """The same for a person."""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    """`attempts/<n>.json`: attempt n belongs to this start of this backend job."""

    attempt: int
    submission: int
    backend_id: str
    restart_count: int
    token: str
    plan: BatchPlan
    plan_reason: str = "submitted"
    log_seq: int = 0
    """Records that the run's log had when this was created: it never gets shorter."""
    host: str = ""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SalvageRecord:
    """`attempts/<n>/salvage/salvage.json`: an adapter that is no checkpoint."""

    attempt: int
    step: int
    directory: str
    adapter_sha256: str
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """`attempts/<n>/nodes/<k>.json`: the agent that holds node k of the attempt."""

    attempt: int
    slot: int
    token: str
    host: str
    address: str
    port: int
    pid: int
    backend_id: str
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRecord:
    """`attempts/<n>/stop/<k>-<i>.json`: a notice; counts from when a reader first saw it."""

    attempt: int
    slot: int
    index: int
    reason: str
    """A signal's name, `peer-lost`, or what a person asked for (`cancel`, `preempt`)."""
    seconds_left: float
    rank: int | None = None
    """The rank that got the signal, where it was a rank and not the agent."""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord:
    """`attempts/<n>/verdict-<k>.json`: how one node's processes ended."""

    attempt: int
    slot: int
    code: int
    reason: str
    """Short word: done, preempted, oom, contract, checkpoint, crash, killed, not-owner, ..."""
    message: str = ""
    """One or a few lines for a person."""
    rank_codes: tuple[int | None, ...] = ()
    notice: str | None = None
    """Reason of the stop request that was served, if any."""
    cause: str = ""
    """What the scheduler said of it: preempted, time-limit, requeued, cancelled or signal."""
    notice_to_exit_s: float | None = None
    unsaved: str = ""
    """What the storage said of the newest save, if that failed."""
    time: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """`lease/<seq>.json`: which controller looks after the run, until when."""

    seq: int
    owner: str
    expires_at: str
    host: str = ""
    pid: int = 0
    boot_id: str = ""
    start_ticks: int = 0
    released: bool = False
    renewed_at: str = ""
    """When this record was written: taken, renewed or released."""
    lasting: bool = True
    """The holder stays with the run until it is settled; else it goes after one pass."""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Body of a `commit` record."""

    directory: str
    """Relative to the run directory (see layout.checkpoint_dir)."""
    step: int
    manifest_hash: str
    trigger: str
    size_bytes: int
    adapter_sha256: str
    tier: str = "durable"
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Body of a `retire` or a `bad` record: the commit's number and why."""

    commit_seq: int
    directory: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Body of the `done` record."""

    commit_seq: int
    step: int
    adapter_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One record of the log; `prev` is the SHA-256 of the bytes of the record before it."""

    seq: int
    kind: RecordKind
    attempt: int
    token: str
    prev: str
    time: str
    body: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1

    def commit(self) -> Commit:
        return from_json(Commit, dict(self.body))

    def retire(self) -> Retire:
        return from_json(Retire, dict(self.body))

    def done(self) -> Done:
        return from_json(Done, dict(self.body))


def encode_record(record: LogRecord) -> bytes:
    """Canonical JSON with a checksum `sum` over all other fields."""
    value = to_json(record)
    return canonical({**value, SUM: digest(value)})


def decode_record(value: Json, seq: int) -> LogRecord:
    """Inverse of `encode_record` on parsed JSON; MalformedJson where checksum or number differ."""
    try:
        record = from_json(LogRecord, without_sum(value))
    except NewerSchema:
        raise
    except MalformedJson as fault:
        raise MalformedJson(f"log record {seq} {fault}") from None
    if record.seq != seq:
        raise MalformedJson(f"log record {seq} calls itself {record.seq}")
    _check_body(record)
    return record


def _check_body(record: LogRecord) -> None:
    if record.kind == "commit":
        record.commit()
    elif record.kind in ("retire", "bad"):
        record.retire()
    elif record.kind == "done":
        record.done()
