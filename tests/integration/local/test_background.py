"""Saves beside training: what a slow, dead or overtaken saver process may and may not do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.operations.actions import cancel, resume
from tests.harness import gates
from tests.harness.gates import Gate
from tests.harness.runs import Bench, Driven, kill, paused


def savers(run: Driven) -> list[int]:
    """Saver processes of the attempt, by rank."""
    found = {
        int(line[-2]): pid
        for pid in run.tree()
        if b"trainer.testing.fake_saver"
        in (line := Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
    }
    return [found[key] for key in sorted(found)]


def calm(bench: Bench) -> tuple[object, ...]:
    run = bench.submit()
    assert run.drive().state == "SUCCEEDED"
    return run.outcome()


def test_training_goes_on_while_a_save_is_stored(bench: Bench) -> None:
    """The saver stores nothing while it stands still; the ranks take four more steps meanwhile."""
    before, after = Gate(bench.folder, "boundary", 5), Gate(bench.folder, "boundary", 9)
    run = gates.submit(bench, before, after, save_s=0.3)
    before.reached(run)
    with paused(savers(run)):
        before.open()
        after.reached(run)
        assert run.commits() == []
    after.open()
    assert run.drive().state == "SUCCEEDED"
    steps = [c[1] for c in run.commits()]
    assert (steps[:2], steps[-1]) == ([5, 10], 20), "the last step may overtake the save of 15"
    stalls = [e["data"]["stall_s"] for e in run.events("save_started") if "stall_s" in e["data"]]
    assert len(stalls) == 3
    assert stalls[0] < min(e["data"]["seconds"] for e in run.events("committed")[:2])
    assert min(e["data"]["seconds"] for e in run.events("committed")[:2]) >= 0.3
    assert run.outcome() == calm(bench)


def test_a_save_slower_than_its_interval_holds_the_next_one_back(bench: Bench) -> None:
    run = bench.submit(step_s=0.02, save_s=0.5)
    assert run.drive().state == "SUCCEEDED"
    steps = [c[1] for c in run.commits()]
    assert steps[:2] == [5, 10]
    assert steps == sorted(steps)


def test_a_saver_that_dies_idle_is_replaced_before_it_is_needed(bench: Bench) -> None:
    run = bench.submit(step_s=0.1)
    run.until_step(1)
    kill(savers(run)[:1])
    assert run.drive().state == "SUCCEEDED"
    assert [c[1] for c in run.commits()] == [5, 10, 15, 20]
    assert [e for e in run.events("warning") if "saver process has died" in e["data"]["message"]]


def test_a_saver_that_dies_in_a_save_costs_that_save_only(bench: Bench) -> None:
    for rank in (0, 1):
        folder = bench.folder / str(rank)
        folder.mkdir()
        before, after = Gate(folder, "boundary", 5), Gate(folder, "micro", 5)
        run = gates.submit(bench, before, after)
        before.reached(run)
        with paused(savers(run)):
            before.open()
            after.reached(run)
            kill([savers(run)[rank]])
        after.open()
        end = run.drive()
        assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1)
        (failed,) = run.events("save_failed")
        assert f"rank {rank}: the saver process ended with -9" in failed["data"]["message"]
        steps = [c[1] for c in run.commits()]
        assert (steps[0], steps[-1]) == (10, 20), "the last step may overtake the save of 15"
        assert run.outcome() == calm(bench)


@contextmanager
def save_under_way(bench: Bench, *, until: int) -> Iterator[Driven]:
    """The save of step 5 stands still, and the ranks have come to a micro-batch after `until`."""
    before = Gate(bench.folder, "boundary", 5)
    after = Gate(bench.folder, "micro", until, do="pause")
    run = gates.submit(bench, before, after)
    before.reached(run)
    with paused(savers(run)):
        before.open()
        after.reached(run)
        yield run


def test_a_notice_during_the_save_of_this_step_joins_it(bench: Bench) -> None:
    with save_under_way(bench, until=5) as run:
        run.notify("SIGTERM")
    run.until_attempt(2)
    assert run.commits() == [(1, 5, "interval")]
    assert [e["data"]["code"] for e in run.events("verdict")] == [75]


def test_a_notice_during_the_save_of_an_older_step_supersedes_it(bench: Bench) -> None:
    with save_under_way(bench, until=6) as run:
        run.notify("SIGUSR1", 1)
        run.until_attempt(2)
    assert run.commits() == [(1, 6, "notice")]
    assert [e["data"]["step"] for e in run.events("save_superseded")] == [5]


def test_a_saver_that_hangs_does_not_outlast_the_grace(bench: Bench) -> None:
    with save_under_way(bench, until=5) as run:
        run.notify("SIGTERM")
        run.until_attempt(2)
    assert run.commits() == [(1, 5, "notice")]


def test_savers_are_deaf_to_the_notices(bench: Bench) -> None:
    run = bench.submit(step_s=0.2)
    run.until_step(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        kill(savers(run), number)
    assert run.drive().row["attempt"] == 1
    assert not run.events("warning")


def test_where_the_time_may_not_do_the_adapter_is_salvaged_first(bench: Bench) -> None:
    job = replace(bench.job(), preemption=replace(bench.job().preemption, grace_s=3.0))
    run = bench.submit(job, step_s=0.2, save_s=4.0)
    run.until_step(7)
    run.notify("SIGTERM")
    run.until_attempt(2)
    assert run.commits() == []
    (salvaged,) = run.events("salvaged")
    assert salvaged["data"]["step"] >= 7
    (verdict,) = run.events("verdict")
    assert (verdict["data"]["code"], verdict["data"]["notice_to_exit_s"] < 3.0) == (76, True)
    cancel(run.run)
    run.drive()
    resume(run.run, restart_from="weights")
    run.drive(lambda _: bool(run.events("resuming")))
    (started,) = [e["data"] for e in run.events("resuming") if "weights_of" in e["data"]]
    assert started == {
        "weights_of": "attempts/000001/salvage",
        "step": salvaged["data"]["step"],
    }
