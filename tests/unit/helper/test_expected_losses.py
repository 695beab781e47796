"""What a helper looks up for its ranks, and how it times a start."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.interrupted import Interrupted, MicroBatch
from orchestrator.contract.jsonio import canonical, to_json
from orchestrator.contract.spec import StartPoint
from orchestrator.errors import StorageError
from orchestrator.helper.expected_losses import Lookup
from orchestrator.helper.startup import LAST, Startup
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import SegmentWriter
from orchestrator.storage.memory import MemoryStorage
from tests.unit.run_directory import fakes

_numbers = itertools.count()
MICRO = (MicroBatch(samples=(1, 2), loss="0x1p+0"),)


class Place:
    """A run directory with attempts that were stopped within a step."""

    def __init__(self) -> None:
        self.storage = MemoryStorage(f"memory://continuity-{next(_numbers)}")
        self.log = RunLog(self.storage)
        self.told: list[tuple[str, dict[str, Any]]] = []

    def attempt(self, number: int, start: StartPoint, *stopped: tuple[int, int, str]) -> None:
        """stopped: (node, step, conditions) of a rank with the node's number."""
        self.log.append("fence", number)
        self.storage.put(layout.start_point(number), canonical(to_json(start)))
        for node, step, conditions in stopped:
            record = Interrupted(
                attempt=number, rank=node, step=step, micro_batches=MICRO, conditions=conditions
            )
            events = SegmentWriter(self.storage, layout.attempt_events(number, f"node-{node}"))
            events.add({"kind": "claimed", "data": {}})
            events.add({"kind": "interrupted", "data": {"broken": 1}})
            events.add({"kind": "interrupted", "data": to_json(record)})
            events.flush()

    def commit(self, attempt: int, step: int) -> StartPoint:
        record = fakes.commit(self.storage, self.log, step, attempt=attempt)
        return StartPoint(kind="checkpoint", step=step, commit_seq=record.seq)

    def expected(
        self, attempt: int, point: StartPoint, *allowed: str, slot: int = 0
    ) -> list[tuple[int, int]]:
        look = Lookup(self.storage, RunLog(self.storage), attempt, slot)
        found = look.expected(point, "now", allowed, lambda k, data: self.told.append((k, data)))
        return [(r.attempt, r.rank) for r in found]


FRESH = StartPoint(kind="fresh")


@pytest.fixture
def place() -> Place:
    return Place()


def test_all_ranks_of_the_attempt_that_committed_it(place: Place) -> None:
    place.attempt(1, FRESH, (0, 6, "now"), (1, 6, "now"))
    point = place.commit(1, 6)
    assert place.expected(2, point) == [(1, 0), (1, 1)]
    assert place.told == []


def test_a_later_attempt_that_began_there_counts_first(place: Place) -> None:
    place.attempt(1, FRESH, (0, 6, "now"))
    point = place.commit(1, 6)
    place.attempt(2, point, (0, 6, "now"))
    place.attempt(3, point)  # stopped before it computed anything
    assert place.expected(4, point) == [(2, 0)]


def test_a_run_that_begins_anew_is_compared_too(place: Place) -> None:
    place.attempt(1, FRESH, (0, 0, "now"))
    assert place.expected(2, FRESH) == [(1, 0)]
    assert place.expected(2, StartPoint(kind="weights")) == []


def test_other_conditions_and_the_users_word(place: Place) -> None:
    place.attempt(1, FRESH, (0, 6, "then"))
    point = place.commit(1, 6)
    assert place.expected(2, point) == []
    ((kind, data),) = place.told
    assert (kind, data["step"]) == ("reproduced", 6)
    assert "batch plan" in data["not_compared"]
    assert place.expected(2, point, slot=1) == []
    assert len(place.told) == 1, "said by one node"
    place.attempt(2, point, (0, 6, "now"))
    assert place.expected(3, point, "losses") == []
    assert place.told[-1][1]["not_compared"] == "--allow-change losses"


def test_what_belongs_to_another_state_is_nothing(place: Place) -> None:
    place.attempt(1, FRESH, (0, 9, "now"))
    point = place.commit(1, 6)
    assert place.expected(2, point, "losses") == []
    assert place.told == []


def test_a_storage_that_fails_costs_the_comparison_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.attempt(1, FRESH, (0, 0, "now"))

    def away(*_: Any, **__: Any) -> Any:
        raise StorageError("away")

    monkeypatch.setattr(place.storage, "list", away)
    assert place.expected(2, FRESH) == []
    ((kind, data),) = place.told
    assert kind == "warning"
    assert "away" in data["message"]


class Ticks:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


def test_stages_add_up_until_the_first_step() -> None:
    clock, told, shown = Ticks(), list[tuple[str, Any]](), list[dict[str, float]]()
    startup = Startup(clock, lambda k, data: told.append((k, data)), shown.append)  # type: ignore[arg-type]
    clock.at = 1.5
    startup.done("claim")
    clock.at = 2.0
    startup.done("contract")
    assert told == [
        ("stage", {"stage": "claim", "seconds": 1.5}),
        ("stage", {"stage": "contract", "seconds": 0.5}),
    ]
    startup.count("training", 1.0)
    startup.count("training", 0.25)
    startup.count(LAST, 3.0)
    startup.count("training", 99.0)
    expected = {"claim": 1.5, "contract": 0.5, "training": 1.25, LAST: 3.0}
    assert shown[-1] == expected
    assert len(shown) == 5


def test_nothing_is_counted_after_a_restart_of_the_helper() -> None:
    shown: list[dict[str, float]] = []
    startup = Startup(Ticks(), lambda *_: None, shown.append)  # type: ignore[arg-type]
    startup.skip()
    startup.count("training", 1.0)
    assert shown == []
