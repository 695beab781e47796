"""Claiming on storage in memory: who may start, who joins, who changes nothing at all."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.agent.identity import Identity
from orchestrator.clock import FakeClock
from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import Done, SubmissionRecord, VerdictRecord
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import StartFrom, TrainSpec
from orchestrator.errors import NotOwner, StorageError
from orchestrator.helper.claim import Claimed, Claimer
from orchestrator.storage import attempts
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Taken
from orchestrator.storage.runlog import RunLog
from tests.unit.storage import fakes

PLAN = BatchPlan(micro=4, accumulation=3, world_size=2)
JOB = ResolvedJob(
    name="n",
    backend="local",
    model=ModelSpec(path="/m"),
    quantization={},
    lora={},
    data=DataSpec(train="/t"),
    training={},
    deepspeed={},
    zero_stage=2,
    resources=Resources(nodes=1, gpus_per_node=2),
    checkpoint=CheckpointSpec(uri="/runs"),
    preemption=PreemptionSpec(grace_s=60.0),
    batch=PLAN,
)
SPEC = TrainSpec(
    run_id="r",
    storage="memory://r",
    submission=1,
    backend="local",
    nodes=1,
    gpus_per_node=2,
    grace_s=60.0,
    signals=("SIGTERM",),
    python="python",
    node_lost_s=5.0,
)


class Site:
    """One run directory and the agents that come to it."""

    def __init__(self, storage: MemoryStorage, clock: FakeClock) -> None:
        self.storage = storage
        self.clock = clock
        self.log = RunLog(storage)

    def submit(self, number: int, **more: Any) -> None:
        record = SubmissionRecord(
            number=number, key=f"k{number}", token="t", spec=SPEC, start=StartFrom(), **more
        )
        assert attempts.create_submission(self.storage, record) is None

    def claimer(
        self,
        submission: int = 1,
        job: str = "a",
        restart: int = 0,
        slot: int | None = 0,
        nodes: int = 1,
        token: str = "",
    ) -> Claimer:
        spec = replace(SPEC, submission=submission, nodes=nodes)
        return Claimer(
            self.storage,
            RunLog(self.storage),
            self.clock,
            spec,
            Identity(job, restart, slot, "host"),
            token or f"{job}-{restart}-{slot}",
        )

    def start(self, *args: Any, **named: Any) -> Claimed:
        return self.claimer(*args, **named).claim(JOB)

    def end(self, attempt: int, code: int, reason: str = "r") -> None:
        attempts.write_verdict(
            self.storage, VerdictRecord(attempt=attempt, slot=0, code=code, reason=reason)
        )


@pytest.fixture
def site(memory: MemoryStorage, clock: FakeClock) -> Site:
    return Site(memory, clock)


def test_the_first_start(site: Site) -> None:
    site.submit(1)
    claimed = site.start()
    assert (claimed.claim.attempt, claimed.claim.submission, claimed.slot.slot) == (1, 1, 0)
    assert (claimed.claim.plan, claimed.claim.plan_reason) == (PLAN, "submitted")
    assert claimed.slot.address == "127.0.0.1"
    assert claimed.slot.port > 0
    view = site.log.read()
    assert [(r.kind, r.attempt) for r in view.records] == [("fence", 1)]


def test_a_restart_in_place_is_the_next_attempt(site: Site) -> None:
    site.submit(1)
    site.start()
    assert site.start(restart=1).claim.attempt == 2
    assert site.log.read().fence() == 2


def test_a_new_submission_is_the_next_attempt(site: Site) -> None:
    site.submit(1)
    site.start()
    site.submit(2)
    assert site.start(2, "b").claim.attempt == 2


# --- stale starts change nothing


def stale(site: Site, text: str, *args: Any, **named: Any) -> None:
    before = fakes.snapshot(site.storage)
    with pytest.raises(NotOwner, match=text) as caught:
        site.start(*args, **named)
    assert caught.value.exit_code == 79
    assert fakes.snapshot(site.storage) == before


def test_an_older_submission(site: Site) -> None:
    site.submit(1)
    site.submit(2)
    stale(site, "submission 1 was followed by 2", 1)


def test_an_older_submission_that_had_been_started(site: Site) -> None:
    site.submit(1)
    site.start()
    site.submit(2)
    stale(site, "submission 1 was followed by 2", 1, restart=7)


def test_an_older_restart_count(site: Site) -> None:
    site.submit(1)
    site.start(restart=3)
    for count in (0, 1, 2):
        stale(site, f"start {count} of job a is older", restart=count)


def test_another_job_of_the_same_submission(site: Site) -> None:
    site.submit(1)
    site.start()
    stale(site, "submission 1 belongs to job a", job="b")
    stale(site, "submission 1 belongs to job a", job="b", restart=5)


def test_a_cancelled_run(site: Site) -> None:
    site.submit(1)
    site.storage.create(layout.TOMBSTONE, b"{}")
    stale(site, "the run is cancelled")


def test_a_cancelled_run_that_had_been_started(site: Site) -> None:
    site.submit(1)
    site.start()
    site.storage.create(layout.TOMBSTONE, b"{}")
    stale(site, "the run is cancelled", restart=1)
    stale(site, "the run is cancelled", slot=1)


def test_a_finished_run(site: Site) -> None:
    site.submit(1)
    site.start()
    done = Done(commit_seq=1, step=1, adapter_sha256="")
    site.log.append("done", 1, to_json(done))
    stale(site, "the run is finished", restart=1)
    site.submit(2)
    stale(site, "the run is finished", 2, "b")


def test_a_submission_that_does_not_stand(site: Site) -> None:
    site.submit(1)
    stale(site, "submission 2 does not stand", 2)
    stale(site, "submission 0 was followed by 1", 0)


def test_a_run_that_finishes_between_claim_and_fence_is_not_trained_again(
    memory: MemoryStorage, clock: FakeClock
) -> None:
    class Late(MemoryStorage):
        old: RunLog | None = None

        def create(self, path: str, data: bytes) -> Created | Taken:
            if path == layout.claim(2) and self.old is not None:
                self.old.append("done", 1, to_json(Done(commit_seq=1, step=1, adapter_sha256="")))
            return super().create(path, data)

    site = Site(Late(memory.uri), clock)
    site.submit(1)
    site.start()
    site.storage.old = RunLog(memory)  # type: ignore[attr-defined]
    with pytest.raises(NotOwner, match="was finished while this attempt was claimed"):
        site.start(restart=1)
    assert attempts.read_slots(memory, 2) == []


# --- joining


def test_agents_of_the_same_start_join_and_take_their_slots(site: Site) -> None:
    site.submit(1)
    first = site.start(slot=0, nodes=3)
    others = [site.start(slot=k, nodes=3) for k in (2, 1)]
    assert {c.claim.attempt for c in (first, *others)} == {1}
    assert [c.slot.slot for c in others] == [2, 1]
    assert len([r for r in site.log.read().records if r.kind == "fence"]) == 1
    assert site.claimer(nodes=3).master(1) == first.slot


def test_agents_without_a_number_take_the_first_free_slot(site: Site) -> None:
    site.submit(1)
    found = [site.start(slot=None, nodes=3, token=f"t{n}").slot.slot for n in range(3)]
    assert found == [0, 1, 2]
    with pytest.raises(NotOwner, match="every slot of attempt 1 is taken"):
        site.start(slot=None, nodes=3, token="t3")


def test_a_slot_that_is_taken(site: Site) -> None:
    site.submit(1)
    site.start(token="one")
    before = fakes.snapshot(site.storage)
    with pytest.raises(NotOwner, match="every slot of attempt 1 is taken"):
        site.start(token="two")
    assert fakes.snapshot(site.storage) == before


def test_a_restarted_helper_takes_up_its_agents_claim(site: Site) -> None:
    site.submit(1)
    first = site.start(token="agent")
    again = site.start(token="agent")
    assert (again.claim, again.slot) == (first.claim, first.slot)
    assert len(site.log.read().records) == 1


def test_a_helper_restarted_between_claim_and_fence_fences(site: Site) -> None:
    site.submit(1)
    claimer = site.claimer(token="agent")
    record = claimer._claim_attempt(JOB)
    assert site.log.read().fence() == 0
    assert site.start(token="agent").claim == record
    assert site.log.read().fence() == 1


def test_who_joins_waits_for_the_fence_and_not_for_ever(site: Site) -> None:
    site.submit(1)
    site.claimer(token="dead")._claim_attempt(JOB)
    before = site.clock.monotonic()
    with pytest.raises(StorageError, match="attempt 1 was claimed but never fenced"):
        site.start(slot=1, nodes=2, token="joins")
    assert 5.0 <= site.clock.monotonic() - before < 6.0


def test_who_joins_an_attempt_that_was_replaced_leaves(site: Site) -> None:
    site.submit(1)
    site.start(slot=0, nodes=2)
    joins = site.claimer(slot=1, nodes=2, token="late")
    real = joins._claim_attempt

    def paused(job: ResolvedJob) -> object:
        found = real(job)
        RunLog(site.storage).append("fence", 2)
        return found

    joins._claim_attempt = paused  # type: ignore[method-assign,assignment]
    with pytest.raises(NotOwner, match="attempt 1 has been replaced by attempt 2"):
        joins.claim(JOB)
    assert len(attempts.read_slots(site.storage, 1)) == 1


def test_a_claimer_that_was_replaced_before_its_fence_leaves(site: Site) -> None:
    site.submit(1)
    slow = site.claimer(token="slow")
    record = slow._claim_attempt(JOB)
    site.start(restart=1)
    with pytest.raises(NotOwner):
        slow._fence(record)
    assert [r.attempt for r in site.log.read().records] == [2]


def test_node_zero_that_does_not_come(site: Site) -> None:
    site.submit(1)
    site.start(slot=1, nodes=2)
    with pytest.raises(StorageError, match="node 0 of attempt 1 did not appear"):
        site.claimer(slot=1, nodes=2).master(1)


def test_many_agents_at_once(site: Site) -> None:
    """Threads: eight nodes of one start."""
    site.submit(1)
    found: list[Claimed] = []
    barrier = threading.Barrier(8)

    def come(slot: int) -> None:
        barrier.wait()
        found.append(site.start(slot=slot, nodes=8))

    threads = [threading.Thread(target=come, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {c.claim.attempt for c in found} == {1}
    assert sorted(c.slot.slot for c in found) == list(range(8))
    assert [r.kind for r in site.log.read().records] == ["fence"]


# --- the plan in force


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
    for restart, code in enumerate((75, 1, 76, 78)):
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
    assert site.start(restart=2).claim.plan.micro == 3


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


def test_reset_batch_plan_by_the_user(site: Site) -> None:
    site.submit(1)
    site.start()
    site.end(1, 77)
    site.submit(2, reset_batch_plan=True)
    claim = site.start(2, "b").claim
    assert (claim.plan, claim.plan_reason) == (PLAN, "reset by the user")
