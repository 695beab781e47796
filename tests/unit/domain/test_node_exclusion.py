"""Which nodes are kept away from, and which deaths blame none."""

from __future__ import annotations

import pytest

from orchestrator.contract.codes import CRASH
from orchestrator.domain.facts import AttemptFacts
from orchestrator.domain.node_exclusion import (
    EXCLUDED_S,
    QUICK_S,
    ExcludedNode,
    NodeDeath,
    excluded_nodes,
    quick_deaths,
)
from orchestrator.domain.verdict import Verdict

T0 = 1_000_000.0


def attempt(
    number: int = 1, code: int = CRASH, lived: float = 20.0, **more: object
) -> AttemptFacts:
    fields = {
        "submission": number,
        "verdict": Verdict(code, "crash", "rank 0: boom"),
        "started_at": T0,
        "ended_at": T0 + lived,
        "failed_on": ("n1",),
        **more,
    }
    return AttemptFacts(number=number, **fields)  # type: ignore[arg-type]


def death(
    node: str, at: float = T0, *, run: str = "r", attempt: int = 1, error: str = "e"
) -> NodeDeath:
    return NodeDeath(node=node, run_id=run, attempt=attempt, at=at, error=error)


def test_a_crash_soon_after_the_start_counts_against_the_nodes_it_was_on() -> None:
    (found,) = quick_deaths("r", [attempt()], T0 + 9e9)
    assert found == death("n1", T0 + 20.0, error="crash: rank #: boom")
    two = quick_deaths("r", [attempt(failed_on=("n1", "n2"))], T0)
    assert [d.node for d in two] == ["n1", "n2"]


@pytest.mark.parametrize(
    "blameless",
    [
        attempt(lived=QUICK_S + 1),
        attempt(commits=1),
        attempt(code=77),
        attempt(code=78),
        attempt(code=75),
        attempt(verdict=None),
        attempt(ending="timeout"),
        attempt(ending="oom"),
        attempt(ending="cancelled"),
        attempt(lost=True, ending="preempted"),
        attempt(lost=True),
        attempt(started_at=None),
        attempt(failed_on=()),
    ],
)
def test_what_blames_no_node(blameless: AttemptFacts) -> None:
    assert quick_deaths("r", [blameless], T0) == ()


def test_without_a_word_the_next_start_or_now_is_the_end() -> None:
    silent = attempt(1, lived=0.0, silent=True, lost=True, ending="node-fail")
    assert quick_deaths("r", [silent], T0 + 30.0)[0].at == T0 + 30.0
    assert quick_deaths("r", [silent], T0 + QUICK_S + 1) == ()
    following = attempt(2, code=75, started_at=T0 + 100.0)
    assert quick_deaths("r", [silent, following], T0 + 9e9)[0].at == T0 + 100.0


def test_two_deaths_exclude_for_a_day_from_the_last_one() -> None:
    deaths = [death("n1", T0), death("n1", T0 + 50.0, run="s"), death("n2", T0, error="f")]
    bad = ExcludedNode(node="n1", until=T0 + 50.0 + EXCLUDED_S, deaths=2, error="e")
    assert excluded_nodes(deaths, T0 + 60.0) == (bad,)
    assert excluded_nodes(deaths, bad.until - 1) == (bad,)
    assert excluded_nodes(deaths, bad.until) == ()
    apart = [death("n1", T0), death("n1", T0 + EXCLUDED_S + 1, run="s")]
    assert excluded_nodes(apart, T0 + EXCLUDED_S + 2) == (), "a day lies between them"


def test_a_run_that_dies_of_the_same_error_everywhere_blames_no_node() -> None:
    own = [death("n1", attempt=1), death("n1", attempt=2), death("n2", attempt=3)]
    assert excluded_nodes(own, T0) == ()
    others = [death("n1", run="s"), death("n1", run="t")]
    assert [n.node for n in excluded_nodes([*own, *others], T0)] == ["n1"]
