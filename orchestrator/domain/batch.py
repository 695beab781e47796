"""The batch plan in force: the same global batch in smaller bites after out-of-memory."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.contract.plan import BatchPlan

RESET = "reset by the user"
"""Reason of a plan that starts over: earlier attempts out of memory do not count against it."""


@dataclass(frozen=True, slots=True)
class PlanInForce:
    """A plan and why it is this one."""

    plan: BatchPlan
    reason: str


def at_floor(plan: BatchPlan) -> bool:
    """True if the plan cannot shrink any more."""
    return plan.micro == 1


def step_down(plan: BatchPlan) -> BatchPlan:
    """The next smaller micro-batch that divides a rank's batch; unchanged at the floor."""
    smaller = next((m for m in range(plan.micro - 1, 0, -1) if plan.rank_batch % m == 0), None)
    if smaller is None:
        return plan
    return BatchPlan(
        micro=smaller, accumulation=plan.rank_batch // smaller, world_size=plan.world_size
    )


def plan_in_force(
    submitted: BatchPlan, checkpoint: BatchPlan | None, ooms_since: int, *, reset: bool = False
) -> PlanInForce:
    """The plan of the next attempt.

    Starts from the checkpoint's plan (else the submitted one) and steps down once for each
    later attempt that ran out of memory (`ooms_since`). `reset` goes back to the submitted.
    """
    if reset:
        return PlanInForce(submitted, RESET)
    plan = checkpoint or submitted
    for _ in range(ooms_since):
        plan = step_down(plan)
    if ooms_since:
        return PlanInForce(plan, f"out of memory in {ooms_since} attempt(s)")
    return PlanInForce(plan, "submitted" if checkpoint in (None, submitted) else "checkpoint")
