"""How a scheduler says that a job ended, and what is decided from it."""

from __future__ import annotations

import pytest

from orchestrator.contract.codes import CRASH
from orchestrator.contract.records import Ending
from orchestrator.domain.decide import (
    Cancel,
    Decision,
    Fail,
    Finish,
    Hold,
    Requeue,
    decide,
    starts_again_now,
)
from orchestrator.domain.facts import AttemptFacts, Policy, RunFacts, taken_away
from orchestrator.domain.verdict import Verdict


def attempt(number: int, code: int = CRASH, **more: object) -> AttemptFacts:
    fields = {
        "submission": 1,
        "verdict": Verdict(code, "killed" if code == CRASH else "preempted", "words"),
        "ended_at": 1000.0,
        **more,
    }
    return AttemptFacts(number=number, **fields)  # type: ignore[arg-type]


def gone(ending: Ending, *attempts: AttemptFacts, **more: object) -> RunFacts:
    fields = {"newest_submission": 1, "backend": "gone", "ending": ending, **more}
    return RunFacts(attempts=attempts, **fields)  # type: ignore[arg-type]


TIMED_OUT = [attempt(n, ending="timeout") for n in (1, 2, 3)]
LOST = [attempt(n, lost=True, ending="node-fail") for n in range(1, 11)]

TABLE: list[tuple[str, RunFacts, Decision]] = [
    ("done and cancelled after it", gone("cancelled", done=True), Finish()),
    ("scancel after a save", gone("cancelled", attempt(1, 75, commits=1)), Cancel()),
    ("scancel in the queue", gone("cancelled"), Cancel()),
    ("node failure", gone("node-fail", LOST[0]), Requeue("taken away (node-fail)")),
    ("nine node failures", gone("node-fail", *LOST[:9]), Requeue("taken away (node-fail)")),
    ("time limit", gone("timeout", TIMED_OUT[0]), Requeue("time limit")),
    (
        "a save at the limit",
        gone("timeout", attempt(1, 75, ending="timeout")),
        Requeue("time limit"),
    ),
    ("a crash", gone("failed", attempt(1)), Requeue("failed (killed)", 1060.0)),
    ("75 that Slurm did not requeue", gone("failed", attempt(1, 75)), Requeue("preempted")),
]


@pytest.mark.parametrize(("facts", "expected"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_table(facts: RunFacts, expected: Decision) -> None:
    assert decide(facts) == expected


def test_ten_attempts_taken_away_without_a_commit_are_held() -> None:
    found = decide(gone("node-fail", *LOST))
    assert isinstance(found, Hold)
    assert found.reason == "no-progress"


def test_the_third_time_limit_without_a_commit_holds() -> None:
    found = decide(gone("timeout", *TIMED_OUT))
    assert isinstance(found, Hold)
    assert found.reason == "time-limit"
    saved = attempt(2, ending="timeout", commits=1)
    assert decide(gone("timeout", TIMED_OUT[0], saved, TIMED_OUT[2])) == Requeue("time limit")


def test_what_was_taken_away_is_no_failure_of_the_run_s() -> None:
    policy = Policy(max_failures_without_progress=3)
    lost = [attempt(n, lost=True) for n in range(1, 6)]
    timed = [attempt(n, ending="timeout") for n in (6, 7)]
    found = decide(gone("failed", *lost, *timed, attempt(8), policy=policy))
    assert isinstance(found, Requeue)
    found = decide(gone("failed", *lost, attempt(6), attempt(7), attempt(8), policy=policy))
    assert isinstance(found, Fail | Hold)


@pytest.mark.parametrize(
    ("ending", "silent", "again", "after_lost", "expected"),
    [
        ("node-fail", True, False, False, True),
        ("preempted", True, False, False, True),
        ("completed", True, False, False, True),
        ("", True, True, False, True),
        ("killed", True, False, True, True),
        ("killed", True, False, False, False),
        ("failed", True, False, True, False),
        ("", True, False, False, False),
        ("node-fail", False, True, True, False),
        ("timeout", True, False, False, False),
    ],
)
def test_taken_away(
    ending: Ending, silent: bool, again: bool, after_lost: bool, expected: bool
) -> None:
    found = taken_away(ending, silent=silent, started_again=again, after_lost=after_lost)
    assert found is expected


def test_only_what_needs_no_back_off_is_started_again_on_the_node() -> None:
    assert starts_again_now(gone("", attempt(1, 75, commits=1)))
    assert starts_again_now(gone("", attempt(1, 76)))
    assert starts_again_now(gone("", attempt(1, 77)))
    assert not starts_again_now(gone("", attempt(1, 77, oom_can_shrink=False)))
    assert not starts_again_now(gone("", attempt(1)))
    assert not starts_again_now(gone("", attempt(1, 78)))
    assert not starts_again_now(gone("", attempt(1, 75), tombstone=True))
    assert not starts_again_now(gone("", attempt(1, 75), done=True))
    assert not starts_again_now(gone("", *(attempt(n, 76) for n in range(1, 11))))
