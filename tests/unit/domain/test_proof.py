"""What `verify` finds equal, and each thing that it must find different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.contract import proof as folded
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.interrupted import Interrupted, MicroBatch
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.plan import BatchPlan
from orchestrator.domain.proof import Check, Evidence, order_check, repeated_steps, resume_checks

RATE = 2e-3
MANIFEST = CheckpointManifest(
    run_id="r", attempt=1, step=6, epoch=0, samples_seen=72, nodes=1, gpus_per_node=2,
    zero_stage=2, plan=BatchPlan(micro=2, accumulation=2, world_size=2), trigger="notice",
    created_at="", files=(), learning_rate_hex=RATE.hex(), adapter_digest="a", adapter_sha256="b",
    rank_digests=("s0", "s1"), rng_digests=("r0", "r1"), pending_eval=False,
)  # fmt: skip
FOUND = [
    {
        "learning_rate_hex": RATE.hex(),
        "adapter_digest": "a",
        "state_digest": f"s{rank}",
        "rng_digest": f"r{rank}",
    }
    for rank in (0, 1)
]
RESUMED: dict[str, Any] = {
    "recorded": folded.of_manifest(MANIFEST),
    "found": folded.of_ranks(FOUND),
    "schedule_hex": RATE.hex(),
}
STATE = [*folded.NAMES.values(), "learning rate by its formula", "learning rate of the first step"]


def row(step: int, rank: int = 0, **changes: Any) -> StepMetrics:
    """Two micro-batches of two samples; six samples an epoch and rank would be three steps."""
    first = 100 * rank + 4 * step
    line = StepMetrics(
        step=step, attempt=1, loss=1.0, loss_hex="0x1p+0", learning_rate=RATE, grad_norm=None,
        time="", samples=(first, first + 1, first + 2, first + 3),
        micro_losses=((step + rank / 8).hex(), (step + 0.5).hex()),
    )  # fmt: skip
    return replace(line, **changes)


def micro_of(line: StepMetrics, count: int) -> tuple[MicroBatch, ...]:
    return tuple(
        MicroBatch(samples=line.samples[2 * i : 2 * i + 2], loss=line.micro_losses[i])
        for i in range(count)
    )


def told(rank: int, **changes: Any) -> Interrupted:
    fields = {"micro_batches": micro_of(row(7, rank), 1), **changes}
    return Interrupted(attempt=1, rank=rank, step=6, conditions="", **fields)


def evidence(**changes: Any) -> Evidence:
    rows = {rank: {step: row(step, rank) for step in (7, 8)} for rank in (0, 1)}
    whole = Evidence(
        attempt=2, kind="checkpoint", step=6, manifest=MANIFEST, resumed=RESUMED,
        expected=(told(0), told(1)), rows=rows,
    )  # fmt: skip
    return replace(whole, **changes)


def differing(found: Evidence, tolerance: float = 0.0) -> list[str]:
    return [c.name for c in resume_checks(found, tolerance) if c.result == "differs"]


def test_a_true_continuation_is_equal_in_everything() -> None:
    checks = list(resume_checks(evidence(), 0.0))
    assert [c.name for c in checks[:6]] == STATE
    assert {c.result for c in checks} == {"equal"}
    assert [c.detail for c in checks[6:]] == ["1 losses and their samples, bit for bit"] * 2


@pytest.mark.parametrize(
    ("fold", "name"), [(k, v) for k, v in folded.NAMES.items()], ids=list(folded.NAMES)
)
def test_state_that_was_not_restored(fold: str, name: str) -> None:
    found = {**RESUMED, "found": {**RESUMED["found"], fold: "other"}}
    assert differing(evidence(resumed=found)) == [name]
    recorded = {**RESUMED["recorded"], fold: "other"}
    lying = {**RESUMED, "recorded": recorded, "found": {**RESUMED["found"], fold: "other"}}
    if fold != "learning_rate":
        assert differing(evidence(resumed=lying)) == [name], "an event that fits itself only"
        assert differing(evidence(resumed=lying, manifest=None)) == []


def test_ranks_that_disagree() -> None:
    for name in ("learning_rate_hex", "adapter_digest", "state_digest", "rng_digest"):
        other = [FOUND[0], {**FOUND[1], name: "other"}]
        found = {**RESUMED, "found": folded.of_ranks(other)}
        assert len(differing(evidence(resumed=found))) == 1, name


def test_rates() -> None:
    closed = {**RESUMED, "schedule_hex": (3e-3).hex()}
    assert differing(evidence(resumed=closed)) == ["learning rate by its formula"]
    used = {0: {7: row(7, learning_rate=3e-3)}}
    assert differing(evidence(rows=used)) == ["learning rate of the first step"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": (9, 9, 30, 31)}, "samples are [9, 9]"),
        ({"micro_losses": ((7.01).hex(), (7.5).hex())}, "loss is 7.01, it was 7.0"),
        ({"micro_losses": ()}, "loss is nan"),
    ],
)
def test_losses_that_are_others(change: Mapping[str, Any], words: str) -> None:
    found = evidence(rows={0: {7: row(7, 0, **change)}, 1: {7: row(7, 1)}})
    (check,) = [c for c in resume_checks(found, 0.0) if c.result == "differs"]
    assert check.name == "interrupted micro-batches of attempt 1, rank 0"
    assert words in check.detail
    if "7.01" in words:
        assert differing(found, tolerance=0.01) == []


def test_what_cannot_be_compared_is_said() -> None:
    def not_compared(found: Evidence) -> list[str]:
        return [c.name for c in resume_checks(found, 0.0) if c.result == "not compared"]

    assert not_compared(evidence(resumed=None)) == ["state", "learning rate of the first step"]
    assert len(not_compared(evidence(rows={}))) == 3
    assert not_compared(evidence(expected=(), skipped="plan")) == ["interrupted micro-batches"]
    assert len(not_compared(evidence(resumed={"step": 6}))) == 6
    fresh = evidence(kind="fresh", step=6, resumed=None, manifest=None)
    assert [c.result for c in resume_checks(fresh, 0.0)] == ["equal", "equal"]


def curves(*steps: int, **changes: Any) -> dict[int, list[StepMetrics]]:
    return {rank: [row(step, rank, **changes) for step in steps] for rank in (0, 1)}


def test_order_of_samples() -> None:
    assert order_check(curves(1, 2, 3), 2).result == "equal"
    twice = curves(1, 2)
    twice[1][1] = row(2, 1, samples=(104, 109, 110, 111))
    assert order_check(twice, 2) == Check(
        "sample order", "differs", "sample 104 twice in an epoch: steps 1 and 2"
    )
    next_epoch = curves(1, 2)
    next_epoch[0][1] = replace(next_epoch[0][1], samples=next_epoch[0][0].samples)
    assert order_check(next_epoch, 1).result == "equal"
    assert order_check(curves(1, 3), 2).detail == "no metrics of step 2"
    assert order_check({}, 2).result == order_check(curves(1), None).result == "not compared"


def test_steps_computed_twice() -> None:
    def attempts(**changes: Any) -> list[Evidence]:
        killed = Evidence(attempt=1, kind="fresh", step=0, rows={0: {7: row(7), 8: row(8)}})
        return [killed, evidence(rows={0: {8: row(8, **changes), 9: row(9)}})]

    (check,) = repeated_steps(attempts(attempt=2), 0.0, losses=True)
    assert (check.result, check.detail) == ("equal", "samples and losses of 1 lines")
    for change in ({"samples": (1,)}, {"micro_losses": ("0x1p+0", "0x1p+0")}):
        (check,) = repeated_steps(attempts(**change), 0.0, losses=True)
        assert check.result == "differs"
    changed = attempts(micro_losses=("0x1p+0", "0x1p+0"))
    assert [c.result for c in repeated_steps(changed, 0.0, losses=False)] == ["equal"]
    assert list(repeated_steps(attempts()[:1], 0.0, losses=True)) == []
