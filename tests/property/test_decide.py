"""What `decide` never does, for any facts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.decide import (
    Cancel,
    Fail,
    Finish,
    Hold,
    Requeue,
    Stop,
    Wait,
    backoff_s,
    decide,
    failures_without_progress,
)
from orchestrator.domain.facts import AttemptFacts, Policy, RunFacts
from orchestrator.domain.verdict import Verdict

CODES = st.sampled_from([0, 1, 75, 76, 77, 78, 79])
REASONS = st.sampled_from(["crash", "killed", "oom", "contract", "checkpoint", "user", "preempted"])
VERDICTS = st.builds(Verdict, CODES, REASONS, st.just("words"))
POLICIES = st.builds(
    Policy,
    max_failures_without_progress=st.integers(1, 5),
    max_attempts_without_commit=st.integers(1, 12),
    every_steps=st.none() | st.integers(1, 9),
)

BITS = st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans())


@st.composite
def attempts(
    draw: st.DrawFn, codes: st.SearchStrategy[Verdict] = VERDICTS, max_size: int = 12
) -> tuple[AttemptFacts, ...]:
    found, submission = [], 1
    for number in range(1, draw(st.integers(0, max_size)) + 1):
        verdict = draw(codes | st.none())
        again, commits, shrink, stopping = draw(BITS)
        submission += again
        found.append(
            AttemptFacts(
                number=number,
                submission=submission,
                verdict=verdict,
                ended_at=1000.0 * number,
                commits=int(commits),
                oom_can_shrink=shrink,
                stopping=stopping,
            )
        )
    return tuple(found)


@st.composite
def runs(
    draw: st.DrawFn, history: st.SearchStrategy[tuple[AttemptFacts, ...]] | None = None
) -> RunFacts:
    past = draw(attempts() if history is None else history)
    newest = (past[-1].submission if past else 0) + draw(st.integers(0, 2))
    return RunFacts(
        attempts=past,
        newest_submission=newest,
        submitted_at=draw(st.none() | st.floats(0, 1e9)),
        backend=draw(st.sampled_from(["pending", "running", "gone", "unknown", "absent"])),
        requeues_itself=draw(st.booleans()),
        done=draw(st.booleans()),
        tombstone=draw(st.booleans()),
        policy=draw(POLICIES),
        unclaimed=draw(st.integers(0, 14)),
        save_seconds=draw(st.none() | st.floats(0, 1e3)),
    )


@settings(max_examples=80)
@given(runs())
def test_done_and_cancelled_are_never_requeued(facts: RunFacts) -> None:
    found = decide(facts)
    if facts.done:
        assert found == Finish()
    elif facts.tombstone:
        assert found in (Stop(), Cancel())
        assert (found == Cancel()) == (facts.backend in ("gone", "absent"))
    else:
        assert not isinstance(found, Finish | Stop | Cancel)


@settings(max_examples=80)
@given(runs())
def test_while_the_job_is_there_nothing_is_submitted(facts: RunFacts) -> None:
    if facts.backend in ("pending", "running", "unknown"):
        assert isinstance(decide(facts), Wait | Finish | Stop)


PREEMPTED = st.builds(Verdict, st.sampled_from([75, 76, 79]), st.just("preempted"))
OOM = st.builds(Verdict, st.just(77), st.just("oom"))


@settings(max_examples=80)
@given(runs(attempts(PREEMPTED)))
def test_preemptions_never_lead_to_failure(facts: RunFacts) -> None:
    assert not isinstance(decide(facts), Fail)
    assert failures_without_progress(facts.attempts) == 0


@settings(max_examples=80)
@given(runs())
def test_a_failure_has_used_its_budget_or_can_never_be_cured(facts: RunFacts) -> None:
    found = decide(facts)
    if isinstance(found, Fail):
        last = facts.attempts[-1]
        assert last.verdict is not None
        if last.verdict.code != 78:
            spent = failures_without_progress(facts.attempts)
            assert spent >= facts.policy.max_failures_without_progress
            assert f"{spent} failures" in found.message
            assert last.commits == 0


@settings(max_examples=80)
@given(runs(), st.lists(VERDICTS, min_size=1, max_size=3))
def test_any_endless_history_comes_to_an_end(facts: RunFacts, again: list[Verdict]) -> None:
    """The same endings over and over without a commit: never requeued for ever."""
    history = facts.attempts
    for turn in range(40):
        number = len(history) + 1
        history = (
            *history,
            AttemptFacts(
                number=number,
                submission=99 + number,
                verdict=again[turn % len(again)],
                oom_can_shrink=turn < 5,
                ended_at=0.0,
            ),
        )
        step = replace(
            facts,
            attempts=history,
            backend="gone",
            done=False,
            tombstone=False,
            newest_submission=99 + number,
        )
        if isinstance(decide(step), Hold | Fail):
            return
    raise AssertionError(f"{again} is requeued for ever")


@settings(max_examples=80)
@given(runs())
def test_it_is_a_function(facts: RunFacts) -> None:
    assert decide(facts) == decide(replace(facts))


@settings(max_examples=80)
@given(runs())
def test_texts_are_for_people(facts: RunFacts) -> None:
    found = decide(facts)
    if isinstance(found, Hold) and found.reason == "no-progress":
        limit = facts.policy.max_attempts_without_commit
        assert found.message.startswith(f"{limit} attempts in a row")
        assert "grace 60 s" in found.message
    if isinstance(found, Requeue):
        assert found.not_before >= 0.0


@given(POLICIES, st.integers(0, 60))
def test_the_back_off_never_falls_and_is_capped(policy: Policy, failures: int) -> None:
    now, later = backoff_s(policy, failures), backoff_s(policy, failures + 1)
    assert policy.backoff_base_s <= now <= later <= policy.backoff_cap_s
