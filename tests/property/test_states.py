"""States follow from facts alone, and agree with what `decide` says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.decide import Fail, Hold, decide
from orchestrator.domain.facts import RunFacts
from orchestrator.domain.states import FINAL, State, state_of
from tests.property.test_decide import runs

PHASES = st.none() | st.sampled_from(
    ["starting", "training", "evaluating", "stopping", "ended", "queued", "?"]
)


@settings(max_examples=150)
@given(runs(), PHASES)
def test_state_and_decision_agree(facts: RunFacts, phase: str | None) -> None:
    decision = decide(facts)
    state = state_of(facts, decision, phase)
    assert state in State
    assert (state is State.SUCCEEDED) == facts.done
    assert (state is State.HELD) == isinstance(decision, Hold)
    assert (state is State.FAILED) == isinstance(decision, Fail)
    if facts.tombstone and not facts.done:
        assert state in (State.CANCELLED, State.CANCELLING)
    if facts.backend in ("pending", "running", "unknown"):
        assert state not in FINAL - {State.SUCCEEDED}
    if state is State.UNKNOWN:
        assert facts.backend == "unknown"
    if state in (State.RUNNING, State.STARTING, State.STOPPING):
        assert facts.backend == "running"


@settings(max_examples=80)
@given(runs(), PHASES)
def test_running_needs_an_attempt_of_the_newest_submission(
    facts: RunFacts, phase: str | None
) -> None:
    if state_of(facts, decide(facts), phase) is State.RUNNING:
        assert facts.last is not None
        assert facts.last.submission == facts.newest_submission
        assert facts.last.verdict is None
