"""One bit of a record of the run directory is changed: nothing wrong is believed, and nothing
stops for good that need not.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.errors import RecordDamaged
from orchestrator.operations.actions import resume
from orchestrator.run_directory.segments import read_segments
from tests.harness.runs import Bench, Driven, kill

CHANCE = random.Random(17)


def flip(path: Path) -> bytes:
    """Change one bit; what stood there before."""
    good = path.read_bytes()
    bit = CHANCE.randrange(8 * len(good))
    data = bytearray(good)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    return good


def preempted(bench: Bench) -> Driven:
    """A run whose first attempt has ended by a notice; nobody has looked at it since."""
    run = bench.submit(step_s=0.05)
    run.until_step(7)
    run.notify("SIGTERM")
    run.wait_gone()
    return run


def told(run: Driven) -> list[str]:
    """Damaged records that the controller has spoken of."""
    lines = read_segments(run.storage, layout.run_events("controller"))
    return [p for _, e in lines if e["kind"] == "damaged_records" for p in e["data"]["paths"]]


NOT_NEEDED = [
    layout.claim(1),
    layout.slot(1, 0),
    layout.verdict(1, 0),
    layout.start_point(1),
    layout.stop(1, 0, 1),
    layout.submission_id(1),
    layout.SUMMARY,
]


@pytest.mark.parametrize("path", NOT_NEEDED)
def test_the_run_goes_on_without_a_record_of_an_attempt_that_has_ended(
    bench: Bench, path: str
) -> None:
    run = preempted(bench)
    run.hurry()
    flip(run.directory / path)
    assert run.drive().state == "SUCCEEDED"
    saved = max(step for attempt, step, _ in run.commits() if attempt == 1)
    assert run.events("resuming")[0]["data"]["step"] == saved, "nothing is lost"
    assert told(run) == ([path] if path == layout.claim(1) else [])
    calm = bench.submit()
    calm.drive()
    assert run.outcome() == calm.outcome()


def test_the_claim_of_an_attempt_at_work(bench: Bench) -> None:
    run = bench.submit(step_s=0.05)
    run.hurry()
    run.until_step(7)
    flip(run.directory / layout.claim(1))
    kill(run.tree())
    run.wait_gone()
    assert run.drive().state == "SUCCEEDED"
    assert [a for a, step, _ in run.commits() if step == 20] == [2]


def test_without_its_newest_submission_a_run_is_held_until_a_person_says_it_again(
    bench: Bench,
) -> None:
    run = preempted(bench)
    run.look()
    run.until_attempt(2)
    run.notify("SIGTERM")
    run.wait_gone()
    flip(run.directory / layout.submission(2))
    held = run.drive()
    assert (held.state, held.row["reason"]) == ("HELD", "damaged")
    assert "submissions/000002.json is damaged" in held.row["message"]
    assert held.row["next"] == f"qvl-orchestrate repair {run.run.run_id}"
    resume(run.run)
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 3)


@pytest.mark.parametrize("path", [layout.RESOLVED, layout.submission(1)])
def test_what_nothing_can_replace_holds_the_run_until_it_is_restored(
    bench: Bench, path: str
) -> None:
    run = preempted(bench)
    good = flip(run.directory / path)
    held = run.drive()
    assert (held.state, held.row["reason"]) == ("HELD", "damaged")
    assert f"{path} is damaged" in held.row["message"]
    assert "backup" in held.row["message"]
    with pytest.raises(RecordDamaged, match="is damaged"):
        resume(run.run)
    (run.directory / path).write_bytes(good)
    assert run.drive().state == "SUCCEEDED"


def test_an_agent_that_finds_its_job_damaged_says_so_and_fails_nothing(bench: Bench) -> None:
    run = preempted(bench)
    run.hurry()
    good = (run.directory / layout.RESOLVED).read_bytes()
    run.look()
    flip(run.directory / layout.RESOLVED)
    held = run.drive()
    assert (held.state, held.row["reason"]) in [("HELD", "damaged"), ("HELD", "refused")]
    assert "resolved.json is damaged" in held.row["message"]
    (run.directory / layout.RESOLVED).write_bytes(good)
    resume(run.run)
    assert run.drive().state == "SUCCEEDED"
