"""`decide`, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.contract.codes import CRASH, ExitCode, normalize
from orchestrator.domain.decide import (
    Cancel,
    Decision,
    Fail,
    Finish,
    GiveBack,
    Hold,
    Requeue,
    Stop,
    Wait,
    backoff_s,
    decide,
    failures_without_progress,
    starts_again_now,
)
from orchestrator.domain.facts import AttemptFacts, Policy, RunFacts
from orchestrator.domain.resume import compare, refusal
from orchestrator.domain.verdict import Verdict


def attempt(
    number: int,
    code: int,
    reason: str = "",
    *,
    commits: int = 0,
    shrink: bool = True,
    message: str = "",
    submission: int | None = None,
) -> AttemptFacts:
    return AttemptFacts(
        number=number,
        submission=submission or number,
        verdict=Verdict(code, reason, message),
        ended_at=1000.0 + number,
        commits=commits,
        oom_can_shrink=shrink,
    )


def gone(*attempts: AttemptFacts, **more: object) -> RunFacts:
    newest = attempts[-1].submission if attempts else 1
    fields = {"newest_submission": newest, "backend": "gone", **more}
    return RunFacts(attempts=attempts, **fields)  # type: ignore[arg-type]


SUSPENDED = replace(attempt(1, 76, "preempted"), suspended=True)
CRASHED = attempt(1, CRASH, "crash", message="rank 0: boom")

TABLE: list[tuple[str, RunFacts, Decision]] = [
    ("done wins over all", gone(CRASHED, done=True, tombstone=True), Finish()),
    ("done while the job is there", RunFacts(done=True, backend="running"), Finish()),
    ("cancelled, job pending", RunFacts(tombstone=True, backend="pending"), Stop()),
    ("cancelled, job running", RunFacts(tombstone=True, backend="running"), Stop()),
    ("cancelled, backend silent", RunFacts(tombstone=True, backend="unknown"), Stop()),
    ("cancelled, job gone", gone(CRASHED, tombstone=True), Cancel()),
    ("cancelled, never submitted", RunFacts(tombstone=True), Cancel()),
    ("pending", RunFacts(backend="pending"), Wait("the job is pending")),
    ("running", RunFacts(backend="running"), Wait("the job is running")),
    ("unknown", RunFacts(backend="unknown"), Wait("the job is unknown")),
    ("never submitted", RunFacts(), Requeue("never submitted")),
    (
        "a part of it has room",
        RunFacts(backend="running", newest_submission=1, no_room=True, detail="no room"),
        GiveBack("no room"),
    ),
    (
        "a part of it has room, but an attempt is at work",
        RunFacts(
            attempts=(CRASHED,), backend="running", newest_submission=1, no_room=True, detail="x"
        ),
        Wait("x"),
    ),
    (
        "given back",
        RunFacts(given_back=1, backend_since=1000.0, newest_submission=1),
        Requeue("no room", 1060.0),
    ),
    (
        "given back for the thousandth time",
        RunFacts(given_back=1000, backend_since=1000.0, newest_submission=1),
        Requeue("no room", 1300.0),
    ),
    (
        "taken away a thousand times before it started",
        RunFacts(
            backend="gone",
            ending="preempted",
            submitted_at=1000.0,
            newest_submission=1,
            taken_unclaimed=1000,
        ),
        Requeue("taken away (preempted)", 1300.0),
    ),
    (
        "not all nodes came",
        RunFacts(
            backend="gone",
            submitted_at=1000.0,
            newest_submission=2,
            unclaimed=2,
            peers_missing=True,
            last_words="node 1 did not come",
        ),
        Requeue("not all nodes came", 1060.0),
    ),
    (
        "not all nodes came, three times",
        RunFacts(
            backend="gone",
            newest_submission=3,
            unclaimed=3,
            peers_missing=True,
            last_words="node 1 did not come",
        ),
        Hold(
            "never-starts",
            "3 submissions in a row ended before their agent claimed an attempt; "
            "node 1 did not come",
        ),
    ),
    ("preempted with a commit", gone(attempt(1, 75, "preempted", commits=1)), Requeue("preempted")),
    ("preempted without", gone(attempt(1, 76, "preempted")), Requeue("preempted")),
    (
        "told to wait by a person a thousand times",
        gone(*(replace(SUSPENDED, number=n, submission=n) for n in range(1, 1001))),
        Requeue("preempted"),
    ),
    ("fenced", gone(attempt(1, 79, "fenced")), Requeue("fenced")),
    ("out of memory", gone(attempt(1, 77, "oom")), Requeue("out of memory: a smaller micro-batch")),
    (
        "the storage takes no writes",
        gone(attempt(1, 74, "storage", message="no room")),
        Requeue("storage", 1001.0, "no room"),
    ),
    (
        "the storage took no claim",
        gone(ending="storage", submitted_at=5000.0, unclaimed=99),
        Requeue("storage", 5010.0, "the run storage took no writes when its agent started"),
    ),
    (
        "out of memory at the floor",
        gone(attempt(1, 77, "oom", shrink=False)),
        Requeue("failed (oom)", 1001.0 + 60.0),
    ),
    ("crash", gone(CRASHED), Requeue("failed (crash)", 1061.0)),
    ("refused by the user's mistake", gone(attempt(1, 78, "user", message="m")), Fail("user", "m")),
    (
        "checkpoints all bad",
        gone(attempt(1, 78, "checkpoint", message="m")),
        Hold("checkpoint", "m", ("--restart-from", "weights")),
    ),
    (
        "the chosen checkpoint is bad, another is kept",
        gone(attempt(1, 78, "checkpoint", message="m"), other_checkpoint="checkpoint-20"),
        Hold("checkpoint", "m", ("--from", "checkpoint-20")),
    ),
    (
        "what was loaded is not what was saved, an older one is kept",
        gone(attempt(1, 78, "contract", message="m"), other_checkpoint="checkpoint-20"),
        Hold("contract", "m", ("--from", "checkpoint-20")),
    ),
    (
        "the newest submission never claimed",
        gone(attempt(1, 75, "preempted", commits=1), newest_submission=2, submitted_at=5000.0),
        Requeue("ended before it started", 5060.0),
    ),
    ("no attempt at all", gone(submitted_at=5000.0), Requeue("ended before it started", 5060.0)),
]


@pytest.mark.parametrize(("facts", "expected"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_table(facts: RunFacts, expected: Decision) -> None:
    assert decide(facts) == expected


def test_a_refused_contract_is_held_with_the_flags_that_would_allow_it() -> None:
    saved = {"config.lora.r": 8, "data.train": "a", "version.torch": "2"}
    now = {"config.lora.r": 16, "data.train": "b", "version.torch": "3"}
    text = refusal(compare(saved, now, versions="strict"), "checkpoint-10")
    found = decide(gone(attempt(1, 78, "contract", message=text or "")))
    assert found == Hold(
        "contract",
        text or "",
        tuple(
            word
            for field in ("data.train", "lora.r", "versions")
            for word in ("--allow-change", field)
        ),
    )


def test_a_contract_that_no_flag_allows_is_held_until_the_conditions_are_restored() -> None:
    text = refusal(compare({"world.nodes": 1}, {"world.nodes": 2}), "checkpoint-10") or ""
    found = decide(gone(attempt(1, 78, "contract", message=text), other_checkpoint="checkpoint-5"))
    assert found == Hold("contract", text, ())


def test_words_of_a_stranger_become_no_flag() -> None:
    text = "to go on: --allow-change $(reboot) --allow-change lora.r;reboot"
    found = decide(gone(attempt(1, 78, "contract", message=text)))
    assert isinstance(found, Hold)
    assert found.next_flags == ("--allow-change", "lora.r")


# --- the budget of failures


def test_the_third_failure_without_progress_is_the_end() -> None:
    two = (attempt(1, 1, "crash"), attempt(2, 1, "killed"))
    assert decide(gone(*two)) == Requeue("failed (killed)", 1002.0 + 120.0)
    found = decide(gone(*two, attempt(3, 1, "crash", message="rank 1: boom")))
    assert found == Fail("crash", "3 failures without a new checkpoint; the last: rank 1: boom")


def test_preemptions_between_failures_neither_count_nor_forgive() -> None:
    mixed = (
        attempt(1, 1, "crash"),
        attempt(2, 75, "preempted"),
        attempt(3, 1, "crash"),
        attempt(4, 76, "preempted"),
        attempt(5, 77, "oom"),
        attempt(6, 1, "killed"),
    )
    assert failures_without_progress(mixed) == 3
    assert isinstance(decide(gone(*mixed)), Fail)


def test_a_commit_forgives() -> None:
    saved = (attempt(1, 1), attempt(2, 1), attempt(3, 1, "crash", commits=1))
    assert failures_without_progress(saved) == 0
    assert decide(gone(*saved)) == Requeue("failed (crash)", 1003.0 + 60.0)


def test_a_crash_that_made_progress_never_fails_even_with_a_budget_of_one() -> None:
    facts = gone(attempt(1, 1, "crash", commits=3), policy=Policy(max_failures_without_progress=1))
    assert isinstance(decide(facts), Requeue)
    facts = gone(attempt(1, 1, "crash"), policy=Policy(max_failures_without_progress=1))
    assert isinstance(decide(facts), Fail)


def test_failures_after_a_commit_count_from_the_commit() -> None:
    tail = (attempt(1, 1, commits=1), attempt(2, 1), attempt(3, 1))
    assert failures_without_progress(tail) == 2
    assert isinstance(decide(gone(*tail)), Requeue)
    assert isinstance(decide(gone(*tail, attempt(4, 1, "crash"))), Fail)


def test_out_of_memory_is_free_until_the_floor_and_then_a_failure() -> None:
    free = tuple(attempt(n, 77, "oom") for n in range(1, 9))
    assert failures_without_progress(free) == 0
    floor = tuple(attempt(n, 77, "oom", shrink=False) for n in range(9, 12))
    assert isinstance(decide(gone(*free, *floor[:2])), Requeue)
    held = decide(gone(*free, *floor))
    assert isinstance(held, Hold)
    assert (held.reason, held.next_flags) == ("same-error", ())


def crashed(number: int, message: str, **more: int) -> AttemptFacts:
    return attempt(number, 1, "crash", message=message, **more)  # type: ignore[arg-type]


def test_the_same_error_three_times_in_a_row_holds_with_its_last_words() -> None:
    patient = Policy(max_failures_without_progress=9)
    words = [f"rank {n}: CUDA error at 0x{n}f3 in /a/b{n}/c.py line {n}" for n in (1, 2, 3)]
    two = [crashed(n, w) for n, w in enumerate(words[:2], 1)]
    assert isinstance(decide(gone(*two, policy=patient)), Requeue)
    found = decide(gone(*two, attempt(3, 75, "preempted"), crashed(4, words[2]), policy=patient))
    assert isinstance(found, Hold)
    assert found.reason == "same-error"
    assert found.message.endswith(words[2])


@pytest.mark.parametrize(
    "between",
    [crashed(2, "rank 0: another"), crashed(2, "rank 1: boom", commits=1), attempt(2, 1, "killed")],
    ids=["another error", "a commit", "killed without a word"],
)
def test_what_breaks_a_row_of_errors(between: AttemptFacts) -> None:
    patient = Policy(max_failures_without_progress=9)
    row = (
        crashed(1, "rank 0: boom"),
        between,
        crashed(3, "rank 3: boom"),
        crashed(4, "rank 0: boom"),
    )
    assert isinstance(decide(gone(*row, policy=patient)), Requeue)
    assert isinstance(decide(gone(*row, crashed(5, "rank 9: boom"), policy=patient)), Hold)


def test_a_batch_script_that_refuses_is_held_at_once_with_its_words() -> None:
    found = decide(gone(ending="refused", detail="FAILED: module: no cuda/99"))
    assert found == Hold("refused", "FAILED: module: no cuda/99")
    late = gone(attempt(1, 75, "preempted", commits=1), newest_submission=2, ending="refused")
    assert isinstance(decide(late), Hold)
    own = gone(attempt(1, 78, "contract", message="m"), ending="refused")
    assert decide(own) == Hold("contract", "m", ("--restart-from", "weights"))


def test_the_back_off_doubles_up_to_its_cap() -> None:
    policy = Policy(backoff_base_s=60.0, backoff_cap_s=1800.0)
    assert [backoff_s(policy, n) for n in range(8)] == [60, 60, 120, 240, 480, 960, 1800, 1800]


# --- preemptions without progress


def preempted(count: int, start: int = 1, commits: int = 0) -> tuple[AttemptFacts, ...]:
    return tuple(attempt(n, 76, "preempted", commits=commits) for n in range(start, start + count))


@pytest.mark.parametrize(
    ("seconds", "every", "text"),
    [
        (
            12.34,
            50,
            "10 attempts in a row ended without a new checkpoint (a save takes 12.3 s, "
            "grace 60 s, interval 50 steps)",
        ),
        (
            None,
            None,
            "10 attempts in a row ended without a new checkpoint (a save takes unknown, "
            "grace 60 s, interval by time)",
        ),
    ],
)
def test_ten_preemptions_without_a_commit_are_held_with_the_figures(
    seconds: float | None, every: int | None, text: str
) -> None:
    policy = Policy(every_steps=every)
    assert isinstance(decide(gone(*preempted(9), policy=policy, save_seconds=seconds)), Requeue)
    found = decide(gone(*preempted(10), policy=policy, save_seconds=seconds))
    assert found == Hold("no-progress", text)


def test_one_commit_among_ten_is_progress() -> None:
    mixed = (*preempted(3), attempt(4, 75, "preempted", commits=1), *preempted(6, 5))
    assert isinstance(decide(gone(*mixed)), Requeue)
    assert isinstance(decide(gone(*mixed, *preempted(4, 11))), Hold)


def test_fifty_preemptions_with_a_commit_each_are_free() -> None:
    assert isinstance(decide(gone(*preempted(50, commits=1))), Requeue)


def test_ten_killed_while_starting_are_held() -> None:
    facts = gone(*preempted(10), newest_submission=11)
    assert isinstance(decide(facts), Hold)


def test_submissions_that_no_agent_ever_claims_are_held() -> None:
    facts = gone(unclaimed=9, submitted_at=0.0)
    assert isinstance(decide(facts), Requeue)
    found = decide(gone(unclaimed=10, submitted_at=0.0))
    assert found == Hold(
        "never-starts",
        "10 submissions in a row ended before their agent claimed an attempt; "
        "see the job's own output",
    )


def test_preemptions_are_counted() -> None:
    facts = gone(
        attempt(1, 75, "preempted"),
        attempt(2, 76, "preempted"),
        attempt(3, 77, "oom"),
        attempt(4, 79, "fenced"),
        attempt(5, 75, "cancelled"),
        CRASHED,
    )
    assert facts.preemptions == 2


# --- codes


@pytest.mark.parametrize("code", list(ExitCode))
def test_known_codes_stay(code: ExitCode) -> None:
    assert normalize(int(code)) == code


@pytest.mark.parametrize("code", [1, 2, 73, 80, 137, -9, -15, 255, 10**20])
def test_any_other_code_is_a_crash(code: int) -> None:
    assert normalize(code) == CRASH


# --- a storage that takes no writes


def test_a_storage_without_room_is_waited_for_without_limit_and_ever_longer() -> None:
    many = tuple(attempt(n, 74, "storage", message="no room") for n in range(1, 40))
    waits = []
    for count in range(1, 40):
        found = decide(gone(*many[:count]))
        assert isinstance(found, Requeue)
        assert found.storage == "no room"
        waits.append(found.not_before - (1000.0 + count))
    assert waits[:4] == [0.0, 10.0, 20.0, 40.0]
    assert waits[-1] == max(waits) == 300.0


def test_attempts_that_the_storage_let_down_spend_no_budget() -> None:
    unsaved = replace(attempt(1, 76, "preempted"), unsaved="no room")
    preempted = tuple(replace(unsaved, number=n, submission=n) for n in range(1, 30))
    assert decide(gone(*preempted)) == Requeue("preempted", storage="no room")
    assert not starts_again_now(gone(*preempted))
    mixed = (attempt(1, 1, "crash"), attempt(2, 74, "storage"), attempt(3, 1, "crash"))
    assert failures_without_progress(mixed) == 2
    assert isinstance(decide(gone(*mixed)), Requeue)


def test_a_failure_of_its_own_counts_though_its_saves_failed_too() -> None:
    crashed = [
        replace(attempt(n, 1, "crash", message=str(n)), unsaved="no room") for n in (1, 2, 3)
    ]
    assert isinstance(decide(gone(*crashed)), Hold)
