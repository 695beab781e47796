"""Claiming: who may start does so once, who joins, who may not changes nothing at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import ArrivalRecord, Done
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import (
    LogDamaged,
    NotOwner,
    PeersMissing,
    QvlError,
    StorageError,
)
from orchestrator.helper.claim import Claimed
from orchestrator.helper.gather import NoticeMet
from orchestrator.run_directory import attempts
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.protocol import Created, Taken
from tests.harness.clock import FakeClock
from tests.unit.helper.sites import JOB, PLAN, Site
from tests.unit.run_directory import fakes


def test_the_first_start(site: Site) -> None:
    site.submit(1)
    claimed = site.start()
    assert (claimed.claim.attempt, claimed.claim.submission, claimed.slot.slot) == (1, 1, 0)
    assert (claimed.claim.plan, claimed.claim.plan_reason) == (PLAN, "submitted")
    assert attempts.read_slots(site.storage, 1) == [claimed.slot]
    assert (claimed.slot.address, claimed.slot.token) == ("127.0.0.1", "a-0-0")
    assert 1024 <= claimed.slot.port < 65536
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


def changes_nothing(site: Site, fault: type[QvlError], text: str, *args: Any, **named: Any) -> None:
    before = fakes.snapshot(site.storage)
    with pytest.raises(fault, match=text):
        site.start(*args, **named)
    assert fakes.snapshot(site.storage) == before


def stale(site: Site, text: str, *args: Any, **named: Any) -> None:
    assert NotOwner.exit_code == 79
    changes_nothing(site, NotOwner, text, *args, **named)


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


def test_a_damaged_log_starts_nothing(site: Site) -> None:
    site.submit(1)
    site.start()
    site.storage.put(layout.log_record(1), b"{}")
    with pytest.raises(LogDamaged, match="record 1") as caught:
        site.start(restart=1)
    assert caught.value.hint is not None
    names = [p for p in fakes.snapshot(site.storage) if p.startswith(layout.LOG)]
    assert names == [layout.log_record(1)]


def test_only_the_next_submission_goes_past_a_damaged_claim(site: Site) -> None:
    site.submit(1)
    site.start()
    site.storage.put(layout.claim(1), b"[]")
    stale(site, "the claim of attempt 1 is damaged", restart=1)
    stale(site, "the claim of attempt 1 is damaged", slot=1)
    site.submit(2, after_attempt=1)
    assert site.start(2, "b").claim.attempt == 2


def test_a_claim_damaged_after_the_submission_was_created_may_be_of_it(site: Site) -> None:
    site.submit(1)
    site.submit(2)
    site.start(2, "b")
    site.storage.put(layout.claim(1), b"[]")
    stale(site, "the claim of attempt 1 is damaged", 2, "b", restart=1)


def test_an_agent_of_a_damaged_newest_submission_claims_nothing(site: Site) -> None:
    site.submit(1)
    site.submit(2)
    site.storage.put(layout.submission(2), b"[]")
    stale(site, "submission 1 was followed by 2", 1)


def test_slot_0_that_cannot_be_read_is_no_meeting_point(site: Site) -> None:
    site.submit(1)
    claimed = site.start()
    site.storage.put(layout.slot(1, 0), b"[]")
    claimer = site.claimer()
    with pytest.raises(StorageError, match="slot of node 0 of attempt 1 is damaged"):
        claimer.master(claimed.claim.attempt)


# --- overtaken


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
def test_overtaken_by_a_newer_submission_at_any_point(
    memory: MemoryStorage, clock: FakeClock, path: str
) -> None:
    """Whoever comes second, the newer start ends up with the highest fence."""
    storage, other = Overtaken(memory.uri), Site(memory, clock)
    site = Site(storage, clock)
    site.submit(1)
    newer: list[Claimed] = []

    def overtake() -> None:
        other.submit(2)
        newer.append(other.start(2, "b"))

    storage.path, storage.act = path, overtake
    try:
        mine = site.start().claim.attempt
    except NotOwner:
        mine = 0
    assert mine < newer[0].claim.attempt == site.log.read().fence()
    with pytest.raises(NotOwner):
        RunLog(memory).append("commit", mine, {})


@pytest.mark.parametrize("path", [layout.claim(2), layout.log_record(2)])
def test_a_run_that_finishes_while_it_is_claimed_is_not_trained_again(
    memory: MemoryStorage, clock: FakeClock, path: str
) -> None:
    storage, old = Overtaken(memory.uri), RunLog(memory)
    site = Site(storage, clock)
    site.submit(1)
    site.start()
    done = to_json(Done(commit_seq=1, step=1, adapter_sha256=""))
    storage.path, storage.act = path, lambda: old.append("done", 1, done)
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
    stale(site, "every slot of attempt 1 is taken", slot=None, nodes=3, token="t3")


def test_a_slot_that_is_taken(site: Site) -> None:
    site.submit(1)
    site.start(token="one")
    stale(site, "every slot of attempt 1 is taken", token="two")


def test_a_restarted_helper_takes_up_its_agents_claim(site: Site) -> None:
    site.submit(1)
    first = site.start(token="agent")
    before = fakes.snapshot(site.storage)
    assert site.start(token="agent") == first
    assert fakes.snapshot(site.storage) == before


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
    text = "attempt 1 was claimed but never fenced"
    changes_nothing(site, StorageError, text, slot=1, nodes=2, token="joins", alone=True)
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


# --- a restarted helper


def test_a_helper_takes_up_what_its_agent_holds(site: Site) -> None:
    """Even once the run is cancelled or done: the attempt is still its own to end."""
    site.submit(1)
    held = site.start(slot=0, nodes=2, token="agent")
    site.start(slot=1, nodes=2, token="other")
    site.storage.create(layout.TOMBSTONE, b"{}")
    site.log.append("done", 1, to_json(Done(commit_seq=1, step=1, adapter_sha256="")))
    assert site.claimer(token="agent").rejoin() == held
    with pytest.raises(NotOwner, match="this agent holds no slot of any attempt"):
        site.claimer(token="stranger").rejoin()


def test_a_helper_whose_attempt_was_replaced_takes_nothing_up(site: Site) -> None:
    site.submit(1)
    site.start(token="agent")
    site.start(restart=1, token="newer")
    with pytest.raises(NotOwner, match="attempt 1 has been replaced by attempt 2"):
        site.claimer(token="agent").rejoin()


# --- before the claim: are all nodes there?


def test_a_node_alone_claims_nothing_and_names_who_is_missing(site: Site) -> None:
    site.submit(1)
    before = site.clock.monotonic()
    with pytest.raises(PeersMissing, match="1 of 2 nodes did not come within 75 s: node 1"):
        site.start(nodes=2, alone=True)
    assert 75.0 <= site.clock.monotonic() - before < 80.0
    assert (attempts.read_claims(site.storage), site.log.read().records) == ([], ())


def test_an_arrival_that_stands_still_is_a_dead_agent_s(site: Site) -> None:
    """A pod that died before its replacement came: two have come, one is there."""
    site.submit(1)
    site.arrive(ArrivalRecord(token="dead", backend_id="a", slot=None, host="h"))
    with pytest.raises(PeersMissing, match="1 of 2 nodes did not come"):
        site.start(slot=None, nodes=2, alone=True)
    assert attempts.read_claims(site.storage) == []


def test_arrivals_of_another_job_of_the_same_submission_do_not_count(site: Site) -> None:
    """Living or with last words: they belong to a job that was taken back."""
    site.submit(1)
    other = ArrivalRecord(token="other", backend_id="b", slot=None, host="h", reason="x")
    site.arrive(other)
    with pytest.raises(PeersMissing, match="did not come"):
        site.start(slot=None, nodes=2, alone=True)


def test_a_peer_that_has_given_up_is_not_waited_for(site: Site) -> None:
    site.submit(1)
    left = ArrivalRecord(
        token="t", backend_id="a", slot=1, host="h1", reason="storage", words="no space"
    )
    site.arrive(left)
    before = site.clock.monotonic()
    with pytest.raises(PeersMissing, match=r"node 1 \(h1\) has left: no space"):
        site.start(nodes=2, alone=True)
    assert site.clock.monotonic() == before


def test_a_notice_ends_the_wait_and_leaves_nothing(site: Site) -> None:
    site.submit(1)
    before = fakes.snapshot(site.storage)
    with pytest.raises(NoticeMet):
        site.start(nodes=2, alone=True, interrupted=lambda: True)
    assert fakes.snapshot(site.storage) == before


def test_a_claim_leaves_no_arrival(site: Site) -> None:
    site.submit(1)
    site.start(nodes=2)
    assert layout.arrival(1, 0, "a-0-0") not in fakes.snapshot(site.storage)


@pytest.mark.parametrize("what", ["cancel", "submission"])
def test_who_waits_hears_that_its_start_is_not_wanted_any_more(site: Site, what: str) -> None:
    site.submit(1)

    def news() -> bool:
        if what == "cancel":
            site.storage.create(layout.TOMBSTONE, b"{}")
        elif len(attempts.read_submissions(site.storage)) == 1:
            site.submit(2)
        return False

    before = site.clock.monotonic()
    with pytest.raises(NotOwner):
        site.start(nodes=2, alone=True, interrupted=news)
    assert site.clock.monotonic() - before <= 6.0


def test_one_node_asks_for_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request more than before there were arrivals."""
    site.submit(1)
    monkeypatch.setattr(attempts, "put_arrival", None)
    monkeypatch.setattr(attempts, "read_arrivals", None)
    monkeypatch.setattr(site.storage, "delete", None)
    assert site.start().claim.attempt == 1
