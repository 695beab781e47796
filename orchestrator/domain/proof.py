"""The proof that a run's attempts are one training, from what they left behind. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import Interrupted, MicroBatch, apart, difference
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.proof import NAMES, of_manifest

Rows = Mapping[int, StepMetrics]
"""The steps of one rank in one attempt, by number."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was compared."""

    name: str
    result: Literal["equal", "differs", "not compared"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of an attempt that began with a checkpoint or anew."""

    attempt: int
    kind: str
    """Of its start point."""
    step: int
    """That it began after."""
    manifest: CheckpointManifest | None = None
    """Of the checkpoint it began with; None once that was given up."""
    resumed: Mapping[str, Any] | None = None
    """Data of its event `resumed`."""
    expected: tuple[Interrupted, ...] = ()
    """What an earlier attempt in the same state has told."""
    skipped: str = ""
    """Why that is not compared."""
    rows: Mapping[int, Rows] = field(default_factory=dict)
    """What its ranks recorded, by rank."""


def resume_checks(evidence: Evidence, tolerance: float) -> Iterator[Check]:
    """Everything that can be compared of one attempt's beginning."""
    if evidence.kind == "checkpoint":
        yield from _state_checks(evidence)
        yield _first_rate(evidence)
    yield from _loss_checks(evidence, tolerance)


def _state_checks(evidence: Evidence) -> Iterator[Check]:
    told = evidence.resumed
    if told is None:
        yield Check("state", "not compared", "the attempt ended before its state was restored")
        return
    recorded, found = told.get("recorded") or {}, told.get("found") or {}
    stored = None if evidence.manifest is None else of_manifest(evidence.manifest)
    source = "the manifest" if stored is not None else "its event (the checkpoint was given up)"
    for key, name in NAMES.items():
        if key not in recorded:
            yield Check(name, "not compared", "not recorded by this version of the trainer")
        elif stored is not None and stored[key] != recorded[key]:
            yield Check(name, "differs", f"manifest {stored[key]}, event {recorded[key]}")
        elif found.get(key) != recorded[key]:
            yield Check(name, "differs", f"recorded {recorded[key]}, found {found.get(key)}")
        else:
            yield Check(name, "equal", f"to {source}")
    closed = told.get("schedule_hex")
    if closed is None:
        yield Check("learning rate by its formula", "not compared", "the schedule has none")
    else:
        equal = closed == recorded.get("learning_rate")
        yield Check("learning rate by its formula", "equal" if equal else "differs", closed)


def _first_rate(evidence: Evidence) -> Check:
    """The rate that the first step used, against the one recorded for it."""
    name = "learning rate of the first step"
    row = evidence.rows.get(0, {}).get(evidence.step + 1)
    recorded = ((evidence.resumed or {}).get("recorded") or {}).get("learning_rate")
    if row is None or recorded is None:
        return Check(name, "not compared", "no step was finished")
    wanted = float.fromhex(recorded)
    if row.learning_rate != wanted:
        return Check(name, "differs", f"step {row.step} used {row.learning_rate!r}, not {wanted!r}")
    return Check(name, "equal", f"step {row.step} used {wanted:g}")


def _loss_checks(evidence: Evidence, tolerance: float) -> Iterator[Check]:
    name = "interrupted micro-batches"
    if evidence.skipped:
        yield Check(name, "not compared", evidence.skipped)
    for record in evidence.expected:
        row = evidence.rows.get(record.rank, {}).get(record.step + 1)
        title = f"{name} of attempt {record.attempt}, rank {record.rank}"
        if row is None:
            yield Check(title, "not compared", f"step {record.step + 1} was not finished")
        else:
            yield _again(title, record.micro_batches, row, tolerance)


def _again(title: str, expected: Sequence[MicroBatch], row: StepMetrics, tolerance: float) -> Check:
    taken, worst = 0, 0.0
    for number, micro in enumerate(expected):
        samples = row.samples[taken : taken + len(micro.samples)]
        taken += len(micro.samples)
        loss = row.micro_losses[number] if number < len(row.micro_losses) else "nan"
        fault = difference(micro, samples, loss, tolerance)
        if fault is not None:
            return Check(title, "differs", f"micro-batch {number + 1} of step {row.step}: {fault}")
        worst = max(worst, apart(micro.loss, loss))
    how = "bit for bit" if worst == 0 else f"within {worst:.2g}"
    return Check(title, "equal", f"{len(expected)} losses and their samples, {how}")


def repeated_steps(
    attempts: Sequence[Evidence], tolerance: float, *, losses: bool
) -> Iterator[Check]:
    """Steps that two attempts computed, after a kill for example: the later one against the first.

    losses: whether they must be equal too; not where a person has allowed changes between them
    """
    first: dict[tuple[int, int], tuple[int, StepMetrics]] = {}
    for evidence in attempts:
        if evidence.kind == "weights":
            first.clear()
        same, faults = 0, []
        for rank, rows in evidence.rows.items():
            for step, row in rows.items():
                known = first.setdefault((rank, step), (evidence.attempt, row))
                if known[1] is row:
                    continue
                fault = _step_differs(known[1], row, tolerance if losses else None)
                same += fault is None
                if fault:
                    faults.append(f"step {step}, rank {rank}, attempt {known[0]}: {fault}")
        name = f"steps computed again by attempt {evidence.attempt}"
        if faults:
            yield Check(name, "differs", faults[0])
        elif same:
            what = "samples and losses" if losses else "samples"
            yield Check(name, "equal", f"{what} of {same} lines")


def _step_differs(before: StepMetrics, now: StepMetrics, tolerance: float | None) -> str | None:
    if before.samples != now.samples:
        return f"samples {list(now.samples)}, were {list(before.samples)}"
    if tolerance is None or len(before.micro_losses) != len(now.micro_losses):
        return None  # another batch plan pads otherwise
    pairs = zip(before.micro_losses, now.micro_losses, strict=True)
    worst = max((apart(a, b) for a, b in pairs), default=0.0)
    return f"losses {worst:.3g} apart" if worst > tolerance else None


def order_check(curves: Mapping[int, Sequence[StepMetrics]], steps_per_epoch: int | None) -> Check:
    """Over the whole run: every step once, and no sample twice within an epoch.

    curves: of each rank, as the attempts together give them
    """
    name = "sample order"
    steps = [row.step for row in curves.get(0, ())]
    if not steps or steps_per_epoch is None:
        return Check(name, "not compared", "no step was finished")
    if steps != list(range(1, len(steps) + 1)):
        missing = sorted(set(range(1, steps[-1] + 1)) - set(steps))
        return Check(name, "not compared", f"no metrics of step {missing[0]}")
    for epoch in range(-(-steps[-1] // steps_per_epoch)):
        seen: dict[int, int] = {}
        for row in _of_epoch(curves, epoch, steps_per_epoch):
            for sample in row.samples:
                if sample in seen:
                    where = f"steps {seen[sample]} and {row.step}"
                    return Check(name, "differs", f"sample {sample} twice in an epoch: {where}")
                seen[sample] = row.step
    return Check(name, "equal", f"{len(steps)} steps, each once; no sample twice in an epoch")


def _of_epoch(
    curves: Mapping[int, Sequence[StepMetrics]], epoch: int, length: int
) -> Iterator[StepMetrics]:
    for rows in curves.values():
        yield from (row for row in rows if (row.step - 1) // length == epoch)
