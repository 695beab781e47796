"""Claiming: who may start does so once; who may not changes nothing at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.agent.identity import Identity
from orchestrator.clock import FakeClock
from orchestrator.contract import layout
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ClaimRecord, SlotRecord, SubmissionRecord, VerdictRecord
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.contract.spec import StartFrom, TrainSpec
from orchestrator.domain.batch import RESET
from orchestrator.errors import CheckpointError, LogDamaged, NotOwner, StorageError
from orchestrator.helper.claim import Claimed, Claimer
from orchestrator.storage import attempts
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Taken
from orchestrator.storage.runlog import RunLog
from tests.unit.storage import fakes

PLAN = BatchPlan(micro=4, accumulation=3, world_size=2)
JOB = ResolvedJob(
    name="j",
    backend="local",
    model=ModelSpec(path="/m"),
    quantization={},
    lora={},
    data=DataSpec(train="/t"),
    training={},
    deepspeed={},
    zero_stage=2,
    resources=Resources(nodes=1, gpus_per_node=2),
    checkpoint=CheckpointSpec(uri="/r"),
    preemption=PreemptionSpec(grace_s=60),
    batch=PLAN,
)
_numbers = itertools.count()


def spec(submission: int, nodes: int = 1) -> TrainSpec:
    return TrainSpec(
        run_id="run",
        storage="memory://",
        submission=submission,
        backend="local",
        nodes=nodes,
        gpus_per_node=2,
        grace_s=60,
        signals=(),
        python="python",
    )


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage(f"memory://claim-{next(_numbers)}")


def submit(storage: MemoryStorage, number: int, *, reset: bool = False) -> None:
    attempts.create_submission(
        storage,
        SubmissionRecord(
            number=number,
            key=f"k{number}",
            token="t",
            spec=spec(number),
            start=StartFrom(),
            reset_batch_plan=reset,
        ),
    )


def claimer(
    storage: MemoryStorage,
    submission: int = 1,
    backend_id: str = "a",
    restart: int = 0,
    *,
    slot: int | None = 0,
    token: str | None = None,
    nodes: int = 1,
) -> Claimer:
    return Claimer(
        storage,
        RunLog(storage),
        FakeClock(),
        spec(submission, nodes),
        Identity(backend_id, restart, slot, "host"),
        token or f"token-{next(_numbers)}",
    )


def claim(storage: MemoryStorage, *args: object, **more: object) -> Claimed:
    return claimer(storage, *args, **more).claim(JOB)  # type: ignore[arg-type]


def verdict(storage: MemoryStorage, attempt: int, code: int) -> None:
    attempts.write_verdict(storage, VerdictRecord(attempt=attempt, slot=0, code=code, reason="x"))


def test_the_first_start_claims_fences_and_takes_a_slot(storage: MemoryStorage) -> None:
    submit(storage, 1)
    held = claim(storage)
    assert (held.claim.attempt, held.claim.submission, held.claim.backend_id) == (1, 1, "a")
    assert (held.claim.plan, held.claim.plan_reason) == (PLAN, "submitted")
    assert (held.slot.slot, held.slot.address) == (0, "127.0.0.1")
    assert [(r.kind, r.attempt) for r in RunLog(storage).read().records] == [("fence", 1)]


def test_a_requeue_in_place_and_a_new_submission_are_new_attempts(storage: MemoryStorage) -> None:
    submit(storage, 1)
    assert claim(storage, 1, "a", 0).claim.attempt == 1
    assert claim(storage, 1, "a", 1).claim.attempt == 2
    submit(storage, 2)
    assert claim(storage, 2, "b", 0).claim.attempt == 3
    assert [r.attempt for r in RunLog(storage).read().records] == [1, 2, 3]


def _tombstone(storage: MemoryStorage) -> None:
    storage.put(layout.TOMBSTONE, b"x")


def _done(storage: MemoryStorage) -> None:
    RunLog(storage).append("done", 2, {"commit_seq": 1, "step": 1, "adapter_sha256": "s"})


def _nothing(_: MemoryStorage) -> None:
    pass


def _third(storage: MemoryStorage) -> None:
    submit(storage, 3)


@pytest.mark.parametrize(
    ("before", "who", "why"),
    [
        (_nothing, (1, "a", 0), "submission 1 was followed by 2"),
        (_nothing, (1, "a", 9), "submission 1 was followed by 2"),
        (_nothing, (2, "b", 2), "start 2 of job b is older than the newest"),
        (_nothing, (2, "other", 9), "submission 2 belongs to job b"),
        (_third, (2, "b", 9), "submission 2 was followed by 3"),
        (_nothing, (9, "b", 9), "submission 9 does not stand in the run directory"),
        (_tombstone, (2, "b", 4), "the run is cancelled"),
        (_done, (2, "b", 4), "the run is finished"),
    ],
)
def test_a_stale_start_changes_nothing(
    storage: MemoryStorage,
    before: Callable[[MemoryStorage], None],
    who: tuple[int, str, int],
    why: str,
) -> None:
    submit(storage, 1)
    claim(storage, 1, "a", 0)
    submit(storage, 2)
    claim(storage, 2, "b", 3)
    before(storage)
    content = fakes.snapshot(storage)
    with pytest.raises(NotOwner, match=why) as caught:
        claim(storage, *who)
    assert caught.value.exit_code == 79
    assert fakes.snapshot(storage) == content


def test_a_second_agent_of_the_same_start_joins(storage: MemoryStorage) -> None:
    submit(storage, 1)
    first = claim(storage, slot=None, nodes=2)
    second = claim(storage, slot=None, nodes=2)
    assert first.claim == second.claim
    assert (first.slot.slot, second.slot.slot) == (0, 1)
    assert [r.kind for r in RunLog(storage).read().records] == ["fence"]
    content = fakes.snapshot(storage)
    with pytest.raises(NotOwner, match="every slot of attempt 1 is taken"):
        claim(storage, slot=None, nodes=2)
    assert fakes.snapshot(storage) == content


def test_a_duplicate_of_a_node_finds_its_slot_taken(storage: MemoryStorage) -> None:
    submit(storage, 1)
    claim(storage)
    content = fakes.snapshot(storage)
    with pytest.raises(NotOwner, match="taken"):
        claim(storage)
    assert fakes.snapshot(storage) == content


def test_a_restarted_helper_takes_up_its_agents_claim(storage: MemoryStorage) -> None:
    submit(storage, 1)
    first = claim(storage, token="agent")
    content = fakes.snapshot(storage)
    assert claim(storage, token="agent") == first
    assert fakes.snapshot(storage) == content


def test_a_helper_that_died_before_its_fence_fences_when_restarted(storage: MemoryStorage) -> None:
    submit(storage, 1)
    record = ClaimRecord(
        attempt=1, submission=1, backend_id="a", restart_count=0, token="agent", plan=PLAN
    )
    attempts.create_claim(storage, record)
    assert claim(storage, token="agent").claim == record
    assert RunLog(storage).read().fence() == 1


def test_who_joins_a_claim_that_is_never_fenced_gives_up(storage: MemoryStorage) -> None:
    submit(storage, 1)
    attempts.create_claim(
        storage,
        ClaimRecord(attempt=1, submission=1, backend_id="a", restart_count=0, token="x", plan=PLAN),
    )
    content = fakes.snapshot(storage)
    with pytest.raises(StorageError, match="claimed but never fenced"):
        claim(storage, slot=1, nodes=2)
    assert fakes.snapshot(storage) == content


def test_a_damaged_log_starts_nothing(storage: MemoryStorage) -> None:
    submit(storage, 1)
    claim(storage)
    storage.put(layout.log_record(1), b"{}")
    with pytest.raises(LogDamaged, match="record 1") as caught:
        claim(storage, 1, "a", 1)
    assert caught.value.hint is not None
    assert [p for p in fakes.snapshot(storage) if p.startswith(layout.LOG)] == [
        layout.log_record(1)
    ]


def test_a_damaged_claim_is_named(storage: MemoryStorage) -> None:
    submit(storage, 1)
    claim(storage)
    storage.put(layout.claim(1), b"[]")
    with pytest.raises(CheckpointError, match="attempts/000001.json is damaged"):
        claim(storage, 1, "a", 1)


class Overtaken(MemoryStorage):
    """Before the first create of `path`, `act` happens."""

    path = ""
    act: Callable[[], object] | None = None

    def create(self, path: str, data: bytes) -> Created | Taken:
        if path == self.path and self.act is not None:
            act, self.act = self.act, None
            act()
        return super().create(path, data)


@pytest.mark.parametrize("path", [layout.claim(1), layout.log_record(1), layout.slot(1, 0)])
def test_overtaken_by_a_newer_submission_at_any_point(path: str) -> None:
    """Whoever comes second, the newer start ends up with the highest fence."""
    storage = Overtaken(f"memory://claim-{next(_numbers)}")
    submit(storage, 1)
    newer: list[Claimed] = []

    def overtake() -> None:
        submit(storage, 2)
        newer.append(claim(MemoryStorage(storage.uri), 2, "b", 0))

    storage.path, storage.act = path, overtake
    old = claimer(storage)
    try:
        mine = old.claim(JOB).claim.attempt
    except NotOwner:
        mine = 0
    assert mine < newer[0].claim.attempt == RunLog(storage).read().fence()
    with pytest.raises(NotOwner):
        RunLog(storage).append("commit", mine, {})


def test_finished_while_being_claimed() -> None:
    """`done` of the older attempt stands before the fence: the new one must not train."""
    storage = Overtaken(f"memory://claim-{next(_numbers)}")
    submit(storage, 1)
    claim(storage)
    done = {"commit_seq": 1, "step": 1, "adapter_sha256": "s"}
    storage.path = layout.log_record(2)
    storage.act = lambda: RunLog(MemoryStorage(storage.uri)).append("done", 1, done)
    with pytest.raises(NotOwner, match="finished"):
        claim(storage, 1, "a", 1)
    assert attempts.read_slots(storage, 2) == []


def test_each_attempt_out_of_memory_steps_the_plan_down_once(storage: MemoryStorage) -> None:
    submit(storage, 1)
    micros = []
    for restart in range(5):
        held = claim(storage, 1, "a", restart)
        micros.append(held.claim.plan.micro)
        assert held.claim.plan.global_batch == PLAN.global_batch
        verdict(storage, held.claim.attempt, 77 if restart < 3 else 76)
    assert micros == [4, 3, 2, 1, 1]


def test_a_checkpoint_carries_its_plan(storage: MemoryStorage) -> None:
    submit(storage, 1)
    claim(storage, 1, "a", 0)
    verdict(storage, 1, 77)
    held = claim(storage, 1, "a", 1)
    assert (held.claim.plan.micro, held.claim.plan_reason) == (
        3,
        "out of memory in 1 attempt(s)",
    )
    fakes.commit(storage, RunLog(storage), 5, attempt=2, plan=held.claim.plan)
    verdict(storage, 2, 75)
    again = claim(storage, 1, "a", 2)
    assert (again.claim.plan.micro, again.claim.plan_reason) == (3, "checkpoint")
    verdict(storage, 3, 77)
    assert claim(storage, 1, "a", 3).claim.plan.micro == 2


def test_a_plan_that_a_person_reset_stays_reset(storage: MemoryStorage) -> None:
    submit(storage, 1)
    for restart in range(2):
        verdict(storage, claim(storage, 1, "a", restart).claim.attempt, 77)
    submit(storage, 2, reset=True)
    held = claim(storage, 2, "b", 0)
    assert (held.claim.plan, held.claim.plan_reason) == (PLAN, RESET)
    verdict(storage, 3, 76)
    assert claim(storage, 2, "b", 1).claim.plan == PLAN
    verdict(storage, 4, 77)
    submit(storage, 3)
    assert claim(storage, 3, "c", 0).claim.plan.micro == 3


def test_node_zero_is_whoever_holds_slot_zero(storage: MemoryStorage) -> None:
    submit(storage, 1)
    zero = claim(storage, slot=0, nodes=2)
    me = claimer(storage, slot=1, nodes=2)
    me.claim(JOB)
    assert me.master(1) == zero.slot


def test_node_zero_never_appears(storage: MemoryStorage) -> None:
    submit(storage, 1)
    me = claimer(storage, slot=1, nodes=2)
    me.claim(JOB)
    with pytest.raises(StorageError, match="node 0 of attempt 1 did not appear"):
        me.master(1)


def test_a_slot_record_names_its_agent(storage: MemoryStorage) -> None:
    submit(storage, 1)
    held = claim(storage, token="agent")
    stored = attempts.read_slots(storage, 1)
    assert stored == [held.slot]
    assert isinstance(stored[0], SlotRecord)
    assert replace(stored[0], port=1, time="").token == "agent"
    assert 1024 <= stored[0].port < 65536
