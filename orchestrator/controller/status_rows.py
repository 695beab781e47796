"""Status rows: what `status --json` gives of one run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.backends.base import JobRef
from orchestrator.clock import iso, parse_iso
from orchestrator.contract.summary import RunSummary
from orchestrator.controller.observe import Seen
from orchestrator.controller.run import Run
from orchestrator.domain.decide import Decision, Fail, Finish, Hold, Requeue, Wait
from orchestrator.domain.states import State
from orchestrator.domain.verdict import STORAGE
from orchestrator.registry.store import RunEntry
from orchestrator.storage.protocol import Storage
from orchestrator.storage.reserve import full_words


def blank_row(entry: RunEntry) -> dict[str, Any]:
    """The row of a run of which nothing is known but its entry."""
    return {
        "run_id": entry.run_id,
        "name": entry.name,
        "backend": entry.backend,
        "backend_job_id": None,
        "backend_job_key": None,
        "backend_job_uid": "",
        "state": State.QUEUED.value,
        "reason": None,
        "attempt": 0,
        "preemptions": 0,
        "step": 0,
        "total_steps": 0,
        "gpus": entry.gpus,
        "last_checkpoint": None,
        "lost_steps": 0,
        "eta_s": None,
        "next": None,
        "loss": None,
        "checkpoint_time": None,
        "message": None,
        "save_seconds": None,
        "step_seconds": None,
        "startup": None,
        "attended": None,
        "grace_s": None,
        "template": None,
        "lost_exact": True,
        "save_fault": None,
    }


RECORDED = "recorded"
"""Internal field of a row: the state that a controller has last recorded in the run's events."""


READ = "read"
"""Internal field of a row: true if a reader found it, not the run's controller."""


def recorded(row: Mapping[str, Any]) -> str | None:
    """That state; of a row that only controllers wrote, its own."""
    found: str | None = row.get(RECORDED, row.get("state"))
    return found


def full_row(run: Run, seen: Seen, decision: Decision, state: State) -> dict[str, Any]:
    """The row from everything that is known."""
    row = blank_row(run.entry)
    last = seen.facts.last
    row |= {
        **_job_fields(seen.job),
        "state": state.value,
        "attempt": last.number if last else (seen.summary.attempt if seen.summary else 0),
        "reason": _reason(decision, seen),
        "message": _message(decision, seen),
        "next": _next(run, decision),
        "template": seen.newest.template if seen.newest else None,
    }
    if seen.summary is not None:
        row = with_summary(row, seen.summary)
    row["preemptions"] = max(row["preemptions"], seen.facts.preemptions)
    row["grace_s"] = seen.facts.policy.grace_s
    row[DAMAGED] = list(seen.damaged)
    return row


def _job_fields(job: JobRef | None) -> dict[str, Any]:
    if job is None:
        return {}
    return {"backend_job_id": job.id, "backend_job_key": job.key, "backend_job_uid": job.uid}


def job_of(row: Mapping[str, Any]) -> JobRef | None:
    """The job of a row; None if it has none, or is of a version that did not note its key."""
    if row.get("backend_job_id") is None or not row.get("backend_job_key"):
        return None
    return JobRef(row["backend_job_id"], row["backend_job_key"], row.get("backend_job_uid") or "")


DAMAGED = "damaged"
"""Internal field: paths of records that are passed over."""
SILENT_S = 75.0
"""A summary that is older, of a run at work, was not written when it should have been."""
FULL = "submit-limit"
"""Reason in the row of a run whose next job its backend does not take for now."""


def waiting_row(row: dict[str, Any], words: str) -> dict[str, Any]:
    """The row of a run whose submission waits until the backend takes it."""
    job = {"backend_job_id": None, "backend_job_key": None, "backend_job_uid": None}
    told = {"reason": FULL, "message": words, "next": "submitted again at the next pass"}
    return {**row, **job, **told}


GONE = "gone"
"""Reason in the row of a run whose directory is not there any more."""


def gone_row(row: dict[str, Any], uri: str) -> dict[str, Any]:
    """The last row of a run whose directory is gone: none of its checkpoints is there."""
    return {
        **row,
        "reason": GONE,
        "message": f"its directory is gone: {uri}",
        "last_checkpoint": None,
        "eta_s": None,
        "next": None,
    }


def submitted_row(row: dict[str, Any], job: JobRef) -> dict[str, Any]:
    """The row of a run whose submission has just been taken."""
    state = State.REQUEUED if row["attempt"] else State.QUEUED
    news = {"state": state.value, "reason": None, "message": None, "next": None}
    return {**row, **news, **_job_fields(job), READ: True}


@dataclass(frozen=True, slots=True)
class StorageWait:
    """A run that is not submitted until its storage takes writes again."""

    words: str
    """What the storage said last."""
    next_at: float
    """When it is tried again, in seconds since the epoch."""
    tries: int

    @classmethod
    def of(cls, row: dict[str, Any] | None) -> StorageWait | None:
        """What an earlier pass has left in the row."""
        found = (row or {}).get("storage_wait")
        return None if found is None else cls(*found)


def storage_row(row: dict[str, Any], wait: StorageWait, now: float) -> dict[str, Any]:
    """The row of a run that waits for its storage."""
    left = max(0.0, wait.next_at - now)
    return {
        **row,
        "reason": STORAGE,
        "message": wait.words,
        "next": f"waits for its storage, which is tried again in {left:.0f} s",
        "storage_wait": (wait.words, wait.next_at, wait.tries),
    }


def with_summary(row: dict[str, Any], summary: RunSummary) -> dict[str, Any]:
    """The row with the figures of summary.json laid over it."""
    checkpoint = None
    if summary.checkpoint_step is not None:
        checkpoint = {"step": summary.checkpoint_step, "verified": summary.checkpoint_verified}
    return {
        **row,
        "attempt": max(row["attempt"], summary.attempt),
        "step": summary.step,
        "total_steps": summary.total_steps,
        "loss": summary.loss,
        "preemptions": max(row["preemptions"], summary.preemptions),
        "lost_steps": summary.lost_steps,
        "lost_exact": summary.lost_exact,
        "save_fault": _save_fault(summary),
        "last_checkpoint": checkpoint,
        "checkpoint_time": summary.checkpoint_time,
        "save_seconds": summary.save_seconds,
        "step_seconds": summary.step_seconds,
        "startup": dict(summary.startup) or None,
        "eta_s": summary.eta_s if row["state"] in ("RUNNING", "STARTING") else None,
    }


def _save_fault(summary: RunSummary) -> dict[str, str] | None:
    if not summary.save_fault:
        return None
    return {"since": summary.save_fault_since, "message": summary.save_fault}


def with_news(
    row: dict[str, Any], summary: RunSummary, storage: Storage, now: float
) -> dict[str, Any]:
    """The row of a run at work, with a word in it where its summary is no longer written: then
    what fails cannot be told by the run itself.
    """
    silent = now - parse_iso(summary.time) if summary.time else 0.0
    if row["save_fault"] is not None or silent < SILENT_S:
        return row
    words = full_words(storage) or "the run cannot write to its storage, or does not answer"
    return {**row, "save_fault": {"since": summary.time, "message": words}}


def public_row(row: dict[str, Any], now: float) -> dict[str, Any]:
    """The documented fields, ages counted from `now` (seconds since the epoch)."""
    checkpoint = row.get("last_checkpoint")
    if checkpoint is not None:
        saved = row.get("checkpoint_time")
        age = round(max(0.0, now - parse_iso(saved)), 1) if saved else None
        checkpoint = {"step": checkpoint["step"], "age_s": age, "verified": checkpoint["verified"]}
    fields = (
        "run_id",
        "name",
        "backend",
        "backend_job_id",
        "state",
        "reason",
        "attempt",
        "preemptions",
        "step",
        "total_steps",
        "gpus",
        "last_checkpoint",
        "lost_steps",
        "eta_s",
        "next",
        "attended",
        "lost_exact",
        "save_fault",
        "message",
    )
    return {**{name: row.get(name) for name in fields}, "last_checkpoint": checkpoint}


def age_fields(seen_at: float, now: float, *, final: bool, fault: str | None) -> dict[str, Any]:
    """How old a row is: `stale_s` is null if it was never seen, 0 if nothing newer can be known;
    `fault` says why it could not be refreshed.
    """
    age = 0.0 if final else round(max(0.0, now - seen_at), 1)
    return {
        "stale_s": age if seen_at else None,
        "last_seen": iso(seen_at) if seen_at else None,
        "fault": fault,
    }


def _reason(decision: Decision, seen: Seen) -> str | None:
    match decision:
        case Hold() | Fail() | Requeue():
            return decision.reason
        case Finish():
            return None
        case Wait():
            last = seen.facts.last
            return last.verdict.reason if last and last.verdict else None
    return "cancelled"


def _message(decision: Decision, seen: Seen) -> str | None:
    """Why it stopped, or what a job that waits is waiting for."""
    if isinstance(decision, Hold | Fail):
        return decision.message
    facts = seen.facts
    if isinstance(decision, Requeue) and not facts.claimed:
        return facts.words or None
    started = facts.backend != "pending" and facts.claimed
    return None if started or not isinstance(decision, Wait) else facts.detail or None


def _next(run: Run, decision: Decision) -> str | None:
    """The command, or the time, that comes next; None where nothing is to be done."""
    match decision:
        case Hold():
            return shlex.join(
                ["qvl-orchestrate", decision.command, run.run_id, *decision.next_flags]
            )
        case Fail(reason="data"):
            return shlex.join(["qvl-orchestrate", "data", "check", "--run", run.run_id])
        case Fail():
            return shlex.join(["qvl-orchestrate", "logs", run.run_id])
        case Requeue():
            wait = decision.not_before - run.clock.now()
            return f"next attempt in {wait:.0f} s" if wait > 0 else "next attempt now"
    return None
