"""Gathers from the run directory what `domain.proof` judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import Interrupted, read_interrupted
from orchestrator.contract.jsonio import MalformedJson, from_json
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.records import LogRecord
from orchestrator.contract.spec import StartPoint
from orchestrator.domain import curve, proof
from orchestrator.domain.recompute import same_state
from orchestrator.errors import CheckpointError
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import read_events, read_segments
from orchestrator.storage.protocol import NotFound, Storage

if TYPE_CHECKING:
    from orchestrator.controller.run import Run

_KINDS = ("resumed", "interrupted", "reproduced", "data")
Events = Mapping[int, list[dict[str, Any]]]
"""By attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptProof:
    """What was compared of one attempt's beginning."""

    attempt: int
    step: int
    checks: tuple[proof.Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared of a run."""

    run_id: str
    tolerance: float
    attempts: tuple[AttemptProof, ...]
    """Those after the first that chose where to begin."""
    checks: tuple[proof.Check, ...]
    """Of the whole run."""

    @property
    def interruptions(self) -> int:
        return len(self.attempts)

    @property
    def holds(self) -> bool:
        """Nothing that was compared differs."""
        found = [*self.checks, *(c for a in self.attempts for c in a.checks)]
        return all(check.result != "differs" for check in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that a run has left behind of its training."""

    evidence: tuple[proof.Evidence, ...]
    """Of each attempt that chose where to begin."""
    curves: dict[int, list[StepMetrics]]
    """Of each rank, as the attempts together give them."""
    tolerance: float
    steps_per_epoch: int | None
    changed: bool
    """A person has allowed changes between attempts."""


def gather(run: Run) -> Record:
    """Read everything. Raises StorageError, RecordDamaged where an attempt's start is damaged."""
    storage = run.storage
    log = RunLog(storage).read().records
    numbers = attempts.attempt_numbers(storage)
    starts = {n: s for n in numbers if (s := attempts.read_start(storage, n)) is not None}
    events = {n: list(read_events(storage, n, _KINDS)) for n in numbers}
    manifests = {n: _manifest(storage, log, starts[n]) for n in starts}
    world = run.job().resources.world_size
    found = [
        proof.Evidence(
            attempt=n,
            kind=point.kind,
            step=point.step,
            manifest=manifests[n],
            resumed=next((e["data"] for e in events[n] if e["kind"] == "resumed"), None),
            expected=_expected(n, starts, events, log),
            skipped=_skipped(events[n]),
            rows={rank: _rows(storage, n, rank) for rank in range(world)},
        )
        for n, point in sorted(starts.items())
    ]
    return Record(
        evidence=tuple(found),
        curves=_curves(found, world),
        tolerance=_tolerance(list(manifests.values()), events),
        steps_per_epoch=_steps_per_epoch(events),
        changed=any(s.spec.allow_change for s in attempts.read_submissions(storage)),
    )


def prove(run_id: str, record: Record) -> Proof:
    """Compare everything. Pure."""
    tolerance = record.tolerance
    order = proof.order_check(record.curves, record.steps_per_epoch)
    again = proof.repeated_steps(record.evidence, tolerance, losses=not record.changed)
    return Proof(
        run_id=run_id,
        tolerance=tolerance,
        attempts=tuple(
            AttemptProof(
                attempt=e.attempt, step=e.step, checks=tuple(proof.resume_checks(e, tolerance))
            )
            for e in record.evidence[1:]
        ),
        checks=(order, *again),
    )


def _skipped(events: list[dict[str, Any]]) -> str:
    """Why an attempt compared nothing with those before it; empty if it did."""
    return next(
        (str(e["data"]["not_compared"]) for e in events if e["data"].get("not_compared")), ""
    )


def _expected(
    number: int, starts: Mapping[int, StartPoint], events: Events, log: tuple[LogRecord, ...]
) -> tuple[Interrupted, ...]:
    """What the newest attempt that trained from the same state had computed of the same step."""
    point = starts[number]
    if _skipped(events[number]):
        return ()
    for before in range(number - 1, 0, -1):
        if same_state(before, starts.get(before), point, log):
            told = [
                read_interrupted(e["data"]) for e in events[before] if e["kind"] == "interrupted"
            ]
            if found := tuple(r for r in told if r is not None and r.step == point.step):
                return found
    return ()


def _rows(storage: Storage, attempt: int, rank: int) -> dict[int, StepMetrics]:
    return {row.step: row for row in _lines(storage, attempt, rank)}


def _lines(storage: Storage, attempt: int, rank: int) -> Iterator[StepMetrics]:
    for _, line in read_segments(storage, layout.metrics(attempt, rank)):
        with suppress(MalformedJson):
            yield from_json(StepMetrics, line)


def _curves(found: list[proof.Evidence], world: int) -> dict[int, list[StepMetrics]]:
    starts = {e.attempt: e.step for e in found}
    return {
        rank: curve.merge({e.attempt: list(e.rows[rank].values()) for e in found}, starts)
        for rank in range(world)
    }


def _manifest(
    storage: Storage, log: tuple[LogRecord, ...], point: StartPoint
) -> CheckpointManifest | None:
    """Of the checkpoint that an attempt began with, while it is kept."""
    if point.kind != "checkpoint" or point.commit_seq is None:
        return None
    record = next((r for r in log if r.seq == point.commit_seq), None)
    return None if record is None else kept_manifest(storage, record)


def kept_manifest(storage: Storage, record: LogRecord) -> CheckpointManifest | None:
    """Of a commit; None once the checkpoint was given up, or is damaged."""
    commit = record.commit()
    try:
        return checkpoints.read_manifest(storage, commit.directory, commit.manifest_hash)
    except (NotFound, CheckpointError):
        return None  # given up since, or damaged: `checkpoints --verify` tells


def _tolerance(manifests: list[CheckpointManifest | None], events: Events) -> float:
    """The widest that the run has recorded."""
    recorded = [m.facts.get("loss_tolerance", 0.0) for m in manifests if m is not None]
    told = [e["data"].get("tolerance", 0.0) for found in events.values() for e in found]
    return max([0.0, *map(float, recorded), *map(float, told)])


def _steps_per_epoch(events: Events) -> int | None:
    for found in events.values():
        for event in found:
            if event["kind"] == "data":
                return int(event["data"]["steps_per_epoch"])
    return None
