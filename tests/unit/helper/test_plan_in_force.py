"""The batch plan that a claim carries: what out of memory, checkpoints and people do to it."""

from __future__ import annotations

from orchestrator.contract import layout
from orchestrator.contract.plan import BatchPlan
from orchestrator.run_directory.runlog import RunLog
from tests.unit.helper.sites import PLAN, Site
from tests.unit.run_directory import fakes


def test_every_out_of_memory_steps_the_plan_down_to_the_floor(site: Site) -> None:
    """Each is counted although later attempts have fenced the earlier ones."""
    site.submit(1)
    plans = []
    for restart in range(5):
        claim = site.start(restart=restart).claim
        plans.append((claim.plan.micro, claim.plan_reason))
        assert claim.plan.global_batch == PLAN.global_batch
        site.end(claim.attempt, 77, "oom")
    assert plans == [
        (4, "submitted"),
        (3, "out of memory in 1 attempt(s)"),
        (2, "out of memory in 2 attempt(s)"),
        (1, "out of memory in 3 attempt(s)"),
        (1, "out of memory in 4 attempt(s)"),
    ]


def test_preemptions_and_crashes_do_not_change_the_plan(site: Site) -> None:
    site.submit(1)
    for restart, code in enumerate((76, 1, 76, 78)):
        assert site.start(restart=restart).claim.plan == PLAN
        site.end(restart + 1, code)


def test_the_plan_of_the_checkpoint_goes_on(site: Site) -> None:
    site.submit(1)
    site.start()
    small = BatchPlan(micro=2, accumulation=6, world_size=2)
    fakes.commit(site.storage, site.log, 10, plan=small)
    site.end(1, 75)
    claim = site.start(restart=1).claim
    assert (claim.plan, claim.plan_reason) == (small, "checkpoint")
    site.end(2, 77)
    assert site.start(restart=2).claim.plan.micro == 1


def test_an_out_of_memory_before_the_checkpoint_is_not_counted_twice(site: Site) -> None:
    site.submit(1)
    site.start()
    site.end(1, 77)
    second = site.start(restart=1).claim
    assert second.plan.micro == 3
    fakes.commit(site.storage, RunLog(site.storage), 10, attempt=2, plan=second.plan)
    site.end(2, 75)
    third = site.start(restart=2).claim
    assert (third.plan.micro, third.plan_reason) == (3, "checkpoint")
    site.end(3, 77)
    assert site.start(restart=3).claim.plan.micro == 2


def test_an_out_of_memory_after_its_own_checkpoint_is_counted(site: Site) -> None:
    site.submit(1)
    site.start()
    fakes.commit(site.storage, site.log, 10, plan=PLAN)
    site.end(1, 77)
    assert site.start(restart=1).claim.plan.micro == 3


def test_a_damaged_manifest_falls_back_to_an_older_plan(site: Site) -> None:
    site.submit(1)
    site.start()
    small = BatchPlan(micro=2, accumulation=6, world_size=2)
    fakes.commit(site.storage, site.log, 10, plan=small)
    record = fakes.commit(site.storage, site.log, 20, plan=PLAN)
    site.storage.put(f"{record.commit().directory}/{layout.MANIFEST}", b"?")
    site.end(1, 75)
    assert site.start(restart=1).claim.plan == small


def test_a_plan_that_a_person_reset_stays_reset(site: Site) -> None:
    site.submit(1)
    for restart in range(2):
        site.end(site.start(restart=restart).claim.attempt, 77)
    site.submit(2, reset_batch_plan=True)
    claim = site.start(2, "b").claim
    assert (claim.plan, claim.plan_reason) == (PLAN, "reset by the user")
    site.end(3, 76)
    assert site.start(2, "b", 1).claim.plan == PLAN
    site.end(4, 77)
    site.submit(3)
    assert site.start(3, "c").claim.plan.micro == 3
