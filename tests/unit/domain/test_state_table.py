"""`state_of`: every state, and the rule for plans and starts that tables say best."""

from __future__ import annotations

import pytest

from orchestrator.domain.decide import Cancel, Decision, Fail, Finish, Hold, Requeue, Stop, Wait
from orchestrator.domain.facts import AttemptFacts, RunFacts
from orchestrator.domain.states import State, state_of
from orchestrator.domain.verdict import Verdict

ALIVE = AttemptFacts(number=1, submission=1)
ENDED = AttemptFacts(number=1, submission=1, verdict=Verdict(75, "preempted"))
STOPPING = AttemptFacts(number=1, submission=1, stopping=True)
WAIT = Wait("")


def run(*attempts: AttemptFacts, backend: str = "running", **more: object) -> RunFacts:
    return RunFacts(  # type: ignore[arg-type]
        attempts=attempts, backend=backend, **{"newest_submission": 1, **more}
    )


ROWS: list[tuple[str, RunFacts, Decision, str | None, State]] = [
    ("done", run(done=True), Finish(), "training", State.SUCCEEDED),
    ("cancelled", run(tombstone=True, backend="gone"), Cancel(), None, State.CANCELLED),
    ("held", run(ENDED, backend="gone"), Hold("", ""), None, State.HELD),
    ("failed", run(ENDED, backend="gone"), Fail("", ""), None, State.FAILED),
    ("cancel under way", run(ALIVE, tombstone=True), Stop(), "training", State.CANCELLING),
    (
        "cancel, backend silent",
        run(ALIVE, tombstone=True, backend="unknown"),
        Stop(),
        None,
        State.CANCELLING,
    ),
    ("backend silent", run(ALIVE, backend="unknown"), WAIT, "training", State.UNKNOWN),
    ("first submission pending", run(backend="pending"), WAIT, None, State.QUEUED),
    ("not yet submitted", run(backend="absent"), Requeue(""), None, State.QUEUED),
    ("next submission pending", run(ENDED, backend="pending"), WAIT, None, State.REQUEUED),
    ("ended, to be requeued", run(ENDED, backend="gone"), Requeue(""), "ended", State.REQUEUED),
    ("agent up, nothing claimed", run(), WAIT, None, State.STARTING),
    ("agent waits for a device", run(), WAIT, "queued", State.QUEUED),
    ("second agent up", run(ENDED, newest_submission=2), WAIT, "ended", State.STARTING),
    ("claimed", run(ALIVE), WAIT, "starting", State.STARTING),
    ("claimed, no summary", run(ALIVE), WAIT, None, State.STARTING),
    ("training", run(ALIVE), WAIT, "training", State.RUNNING),
    ("evaluating", run(ALIVE), WAIT, "evaluating", State.RUNNING),
    ("stop request stands", run(STOPPING), WAIT, "training", State.STOPPING),
    ("says it stops", run(ALIVE), WAIT, "stopping", State.STOPPING),
    ("verdict stands, job not gone", run(ENDED), WAIT, "ended", State.STOPPING),
]


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_rows(row: tuple[str, RunFacts, Decision, str | None, State]) -> None:
    _, facts, decision, phase, expected = row
    assert state_of(facts, decision, phase) is expected


def test_every_state_is_reached() -> None:
    assert {row[-1] for row in ROWS} == set(State)
