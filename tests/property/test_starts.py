"""Any set of starters in any interleaving: one claim a start, and the newest start wins."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.contract.records import ClaimRecord
from orchestrator.domain.starts import MayClaim, MayJoin, Stale, Starter, may_start
from orchestrator.run_directory import attempts
from orchestrator.storage.memory import MemoryStorage
from tests.unit.run_directory.fakes import PLAN

STARTERS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from(["a", "b"]), st.integers(0, 3)),
    min_size=1,
    max_size=7,
)
_spaces = itertools.count()


@dataclass
class World:
    """What all starters share; `newest` grows as a controller submits."""

    storage: MemoryStorage
    newest: int = 1
    tombstone: bool = False
    done: bool = False


def start(world: World, me: Starter, token: str) -> Generator[None, None, ClaimRecord | str]:
    """One agent, as Claimer does it; every yield is a place where others may go on."""
    while True:
        newest, tombstone, done = world.newest, world.tombstone, world.done
        yield
        claims = attempts.read_claims(world.storage)
        yield
        outcome = may_start(me, claims, newest, tombstone=tombstone, done=done)
        if isinstance(outcome, Stale):
            return outcome.reason
        if isinstance(outcome, MayJoin):
            return outcome.claim
        record = ClaimRecord(
            attempt=outcome.attempt,
            submission=me.submission,
            backend_id=me.backend_id,
            restart_count=me.restart_count,
            token=token,
            plan=PLAN,
        )
        yield
        if attempts.create_claim(world.storage, record) is None:
            return record


def play(
    world: World, starters: list[Starter], order: st.DataObject, submits: bool
) -> list[ClaimRecord | str]:
    agents = {n: start(world, s, f"agent {n}") for n, s in enumerate(starters)}
    ends: dict[int, ClaimRecord | str] = {}
    while agents:
        if submits and world.newest < 3 and order.draw(st.integers(0, 5)) == 0:
            world.newest += 1
        number = order.draw(st.sampled_from(sorted(agents)))
        try:
            next(agents[number])
        except StopIteration as end:
            ends[number] = end.value
            del agents[number]
    return [ends[n] for n in range(len(starters))]


@settings(max_examples=200)
@given(STARTERS, st.integers(1, 3), st.data())
def test_one_claim_a_start(
    drawn: list[tuple[int, str, int]], newest: int, data: st.DataObject
) -> None:
    uri = f"memory://starts-{next(_spaces)}"
    world = World(MemoryStorage(uri), newest)
    starters = [Starter(*s) for s in drawn]
    ends = play(world, starters, data, submits=True)
    claims = attempts.read_claims(world.storage)

    keys = [(c.submission, c.restart_count) for c in claims]
    assert len(set(keys)) == len(keys), "at most one claim number for a start"
    assert keys == sorted(keys), "later attempts are later starts"
    assert [c.attempt for c in claims] == list(range(1, len(claims) + 1))
    for submission in {c.submission for c in claims}:
        owners = {c.backend_id for c in claims if c.submission == submission}
        assert len(owners) == 1, "no two jobs own a submission"

    for me, end in zip(starters, ends, strict=True):
        if isinstance(end, ClaimRecord):
            assert end in claims
            assert (end.submission, end.backend_id, end.restart_count) == (
                me.submission,
                me.backend_id,
                me.restart_count,
            )
    MemoryStorage._spaces.pop(uri)


@settings(max_examples=200)
@given(STARTERS, st.integers(1, 3), st.data())
def test_someone_starts(
    drawn: list[tuple[int, str, int]], newest: int, data: st.DataObject
) -> None:
    """If a start of the newest submission is there, one becomes attempt 1."""
    uri = f"memory://starts-{next(_spaces)}"
    starters = [Starter(*s) for s in drawn]
    ends = play(World(MemoryStorage(uri), newest), starters, data, submits=False)
    wanted = [s for s in starters if s.submission == newest]
    assert any(isinstance(e, ClaimRecord) for e in ends) == bool(wanted)
    MemoryStorage._spaces.pop(uri)


@given(STARTERS, st.booleans(), st.data())
def test_a_done_or_cancelled_run_is_never_started(
    drawn: list[tuple[int, str, int]], done: bool, data: st.DataObject
) -> None:
    uri = f"memory://starts-{next(_spaces)}"
    world = World(MemoryStorage(uri), 1, tombstone=not done, done=done)
    starters = [Starter(*s) for s in drawn]
    reason = "the run is finished" if done else "the run is cancelled"
    assert play(world, starters, data, submits=True) == [reason] * len(starters)
    assert attempts.read_claims(world.storage) == []
    MemoryStorage._spaces.pop(uri)


def claim(attempt: int, submission: int, backend: str, restart: int) -> ClaimRecord:
    return ClaimRecord(
        attempt=attempt,
        submission=submission,
        backend_id=backend,
        restart_count=restart,
        token="t",
        plan=PLAN,
    )


def test_rows() -> None:
    one = claim(1, 1, "a", 0)
    two = claim(2, 1, "a", 1)

    def ask(me: Starter, claims: list[ClaimRecord], newest: int = 1) -> object:
        return may_start(me, claims, newest, tombstone=False, done=False)

    assert ask(Starter(1, "a", 0), []) == MayClaim(1)
    assert ask(Starter(1, "a", 0), [one]) == MayJoin(one)
    assert ask(Starter(1, "a", 1), [one]) == MayClaim(2)
    assert ask(Starter(1, "a", 0), [one, two]) == Stale("start 0 of job a is older than the newest")
    assert ask(Starter(1, "b", 5), [one]) == Stale("submission 1 belongs to job a")
    assert ask(Starter(1, "a", 5), [one], 2) == Stale("submission 1 was followed by 2")
    assert ask(Starter(2, "b", 0), [one, two], 2) == MayClaim(3)
    assert ask(Starter(3, "c", 0), [one], 2) == Stale(
        "submission 3 does not stand in the run directory"
    )
