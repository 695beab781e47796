"""What a drill proves: a run that was preempted, against the same run undisturbed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.clock import parse_iso
from orchestrator.contract.event import Event, StepMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One preemption, in seconds from its notice; None: it did not come to that."""

    attempt: int
    step: int | None = None
    """The step that the ranks agreed to stop at."""
    agreed: float | None = None
    saving: float | None = None
    durable: float | None = None
    left: float | None = None
    requeued: float | None = None
    first_step: float | None = None
    resumed_step: int | None = None
    """The step that the next attempt started from."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two runs, as it ended."""

    state: str
    attempts: int
    curve: tuple[StepMetrics, ...]
    adapter_sha256: str | None


def timelines(events: Sequence[Event], curve: Sequence[StepMetrics]) -> tuple[Timeline, ...]:
    """Every attempt that got a notice, oldest first."""
    noticed = {e.attempt for e in events if e.kind == "notice" and e.attempt is not None}
    return tuple(_timeline(n, events, curve) for n in sorted(noticed))


def _timeline(attempt: int, events: Sequence[Event], curve: Sequence[StepMetrics]) -> Timeline:
    here = [e for e in events if e.attempt == attempt]
    later = [e for e in events if e.attempt == attempt + 1]
    zero = min(parse_iso(e.time) for e in here if e.kind == "notice")

    def since(found: Sequence[Event], *kinds: str) -> float | None:
        times = [round(parse_iso(e.time) - zero, 3) for e in found if e.kind in kinds]
        return min((t for t in times if t >= 0), default=None)

    steps = [round(parse_iso(m.time) - zero, 3) for m in curve if m.attempt == attempt + 1]
    stopped = [e.data.get("step") for e in here if e.kind == "stop_agreed"]
    resumed = [e.data.get("step") for e in later if e.kind in ("resuming", "resumed")]
    return Timeline(
        attempt=attempt,
        step=stopped[0] if stopped else None,
        agreed=since(here, "stop_agreed"),
        saving=since(here, "save_started", "save_skipped"),
        durable=since(here, "committed", "save_skipped"),
        left=since(here, "verdict"),
        requeued=since(later, "claimed"),
        first_step=min(steps, default=None),
        resumed_step=resumed[0] if resumed else None,
    )


def judge(
    disturbed: Side,
    undisturbed: Side,
    found: Sequence[Timeline],
    *,
    grace_s: float,
    tolerance: float = 0.0,
) -> tuple[Check, ...]:
    """Everything that must have held. `tolerance`: relative, of the losses; 0 = bit for bit."""
    return (
        *_ends(disturbed, undisturbed),
        *_notices(disturbed, found),
        *(check for line in found for check in _preemption(line, grace_s)),
        *_same(disturbed, undisturbed, tolerance),
    )


def _ends(disturbed: Side, undisturbed: Side) -> Iterator[Check]:
    for side, name in ((undisturbed, "undisturbed"), (disturbed, "preempted")):
        yield Check(f"the {name} run succeeded", side.state == "SUCCEEDED", side.state)


def _notices(disturbed: Side, found: Sequence[Timeline]) -> Iterator[Check]:
    detail = f"{len(found)} notices" if found else "none: give it more --steps"
    yield Check("a notice arrived", bool(found), detail)
    starts = disturbed.attempts - 1
    yield Check(
        "each preemption was requeued exactly once",
        starts == len(found),
        f"{len(found)} preemptions, {starts} further attempts",
    )


def _preemption(line: Timeline, grace_s: float) -> Iterator[Check]:
    name = f"attempt {line.attempt}"
    needs = line.durable
    detail = (
        "nothing was saved" if needs is None else f"needs {needs:.1f} s, you have {grace_s:g} s"
    )
    yield Check(f"{name}: saved within the grace", needs is not None and needs <= grace_s, detail)
    same = line.step is not None and line.step == line.resumed_step
    detail = f"stopped at step {line.step}, went on from step {line.resumed_step}"
    yield Check(f"{name}: nothing was lost", same, detail)
    trained = line.first_step is not None
    detail = "the notice came after the last step: give it more --steps"
    if trained:
        detail = f"its first step was done {line.first_step:.1f} s after the notice"
    yield Check(f"{name}: the next attempt went on training", trained, detail)


def _same(disturbed: Side, undisturbed: Side, tolerance: float) -> Iterator[Check]:
    pairs = [(m.step, m.loss_hex) for m in disturbed.curve]
    wanted = [(m.step, m.loss_hex) for m in undisturbed.curve]
    if tolerance == 0.0:
        yield Check("the losses are the same, bit for bit", pairs == wanted, _difference(
            disturbed, undisturbed))  # fmt: skip
        same = disturbed.adapter_sha256 == undisturbed.adapter_sha256 is not None
        detail = f"{disturbed.adapter_sha256} and {undisturbed.adapter_sha256}"
        yield Check("the adapters are the same, bit for bit", same, detail)
    else:
        far = _farthest(disturbed, undisturbed)
        yield Check(
            f"the losses agree within {tolerance:g}",
            far is not None and far <= tolerance,
            _difference(disturbed, undisturbed),
        )
    rates = [m.learning_rate for m in disturbed.curve]
    equal = rates == [m.learning_rate for m in undisturbed.curve]
    yield Check("the learning rates are the same", equal, f"{len(rates)} steps")


def _farthest(disturbed: Side, undisturbed: Side) -> float | None:
    """The greatest relative difference of a loss; None where steps or values are missing."""
    if [m.step for m in disturbed.curve] != [m.step for m in undisturbed.curve]:
        return None
    far = 0.0
    for one, other in zip(disturbed.curve, undisturbed.curve, strict=True):
        if one.loss is None or other.loss is None:
            return None
        far = max(far, abs(one.loss - other.loss) / max(abs(other.loss), 1e-12))
    return far


def _difference(disturbed: Side, undisturbed: Side) -> str:
    count, wanted = len(disturbed.curve), len(undisturbed.curve)
    far = _farthest(disturbed, undisturbed)
    if far is None:
        return f"{count} steps, undisturbed {wanted}"
    return f"{count} steps, greatest relative difference {far:.2g}"
