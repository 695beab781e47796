"""When silence is a hang, and in which words it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from orchestrator.agent import stacks
from orchestrator.agent.hang import ANSWER_S, Hang
from orchestrator.agent.outcome import RankEnd, node_outcome
from orchestrator.agent.watchdog import PAUSE_S, SLOW, STEPS, Watch, grouped

HANG_S = 60.0


class Clocked:
    """A watch of two ranks, looked at once a second as the agent does."""

    def __init__(self, hang_s: float = HANG_S, *, beats: bool = True) -> None:
        self.now = 1000.0
        self.watch = Watch(hang_s)
        for rank in (0, 1):
            self.hear(rank, t="hello", beats=beats)
        self.watch.begin(self.now)

    def hear(self, *ranks: int, t: str = "beat", **fields: object) -> None:
        for rank in ranks or (0, 1):
            self.watch.heard(rank, {"t": t, **fields}, self.now)

    def wait(self, seconds: float) -> str:
        """The first words, if any, of this time."""
        for _ in range(round(seconds)):
            self.now += 1.0
            if words := self.watch.overdue(self.now):
                return words
        return ""

    def steps(self, count: int, seconds: float) -> None:
        self.hear(t="phase", phase="training")
        for _ in range(count):
            assert self.wait(seconds) == ""
            self.hear(doing="step")


def test_no_step_for_the_shortest_time_is_a_hang() -> None:
    clocked = Clocked()
    clocked.steps(20, 1.0)
    assert clocked.wait(HANG_S) == ""
    assert clocked.wait(2) == "no step for 61 s"


def test_a_slow_run_has_ten_times_its_median_step() -> None:
    clocked = Clocked()
    clocked.steps(20, 30.0)
    assert clocked.wait(STEPS * 30.0) == ""
    assert clocked.wait(2) == "no step for 301 s"


def test_one_slow_step_does_not_make_the_next_ones_slower() -> None:
    clocked = Clocked()
    clocked.steps(20, 1.0)
    clocked.steps(1, 50.0)
    assert clocked.wait(HANG_S + 2) == "no step for 61 s"


def test_one_rank_is_enough_and_a_micro_batch_counts() -> None:
    clocked = Clocked()
    clocked.steps(3, 1.0)
    for _ in range(10):
        assert clocked.wait(50) == ""
        clocked.hear(doing="training")
    for _ in range(2):
        assert clocked.wait(50) == "" or _ == 1
        clocked.hear(0, doing="training")
    assert clocked.wait(1).startswith("no step for ")


@pytest.mark.parametrize("phase", ["base", "engine", "training"])
def test_the_start_up_and_the_first_step_have_longer(phase: str) -> None:
    clocked = Clocked()
    for stage in ("adapter", phase):
        assert clocked.wait(SLOW * HANG_S - 1) == ""
        clocked.hear(t="phase", phase=stage)
    assert clocked.wait(SLOW * HANG_S) == ""
    said = clocked.wait(2)
    assert said == ("no step" if phase == "training" else f"nothing after the stage {phase}") + (
        f" for {SLOW * HANG_S + 1:.0f} s"
    )


def test_a_save_has_longer_and_an_evaluation_counts_by_its_batches() -> None:
    clocked = Clocked()
    clocked.steps(20, 1.0)
    clocked.hear(doing="saving")
    assert clocked.wait(SLOW * HANG_S) == ""
    clocked.hear(doing="training")
    clocked.hear(t="phase", phase="evaluating")
    for _ in range(20):
        assert clocked.wait(HANG_S - 1) == ""
        clocked.hear(doing="evaluating")
    clocked.steps(1, 1.0)
    clocked.hear(doing="saving")
    assert clocked.wait(SLOW * HANG_S + 2) == "no end of a save for 181 s"


def test_evaluations_and_saves_are_no_part_of_the_pace() -> None:
    clocked = Clocked()
    clocked.steps(4, 1.0)
    for _ in range(40):
        clocked.hear(doing="saving")
        assert clocked.wait(50) == ""
        clocked.hear(doing="training")
        clocked.steps(1, 1.0)
    assert clocked.wait(HANG_S + 2) == "no step for 61 s"


def test_a_rank_that_leaves_is_not_watched() -> None:
    clocked = Clocked()
    clocked.hear(0, t="ending", code=0)
    clocked.hear(1, t="phase", phase="stopping")
    assert clocked.wait(10_000) == ""


def test_nothing_is_watched_before_the_assignment_nor_of_ranks_without_beats() -> None:
    waiting = Watch(HANG_S)
    waiting.heard(0, {"t": "hello", "beats": True}, 0.0)
    assert waiting.overdue(1e6) == ""
    assert Clocked(beats=False).wait(10_000) == ""
    assert Clocked(0.0).wait(10_000) == "", "turned off"


def test_a_rank_that_starts_after_the_assignment_is_watched_too() -> None:
    late = Clocked()
    late.watch = Watch(HANG_S)
    late.watch.begin(late.now)
    late.hear(1, t="hello", beats=True)
    assert late.wait(SLOW * HANG_S + 2) == "nothing after the stage assigned for 181 s"


def test_a_job_that_was_suspended_did_not_hang() -> None:
    clocked = Clocked()
    clocked.steps(5, 1.0)
    clocked.now += 100_000.0
    assert clocked.watch.overdue(clocked.now) == ""
    assert clocked.wait(HANG_S - PAUSE_S) == ""
    assert clocked.wait(PAUSE_S + 2).startswith("no step for ")


def test_ranks_are_grouped_by_place_the_odd_one_first() -> None:
    places = [(0, "in all_reduce"), (1, "stopped"), (2, "in all_reduce"), (3, "in all_reduce")]
    assert grouped(places) == "rank 1 stopped, ranks 0, 2 and 3 in all_reduce"
    assert grouped(places[:2]) == "rank 1 stopped, rank 0 in all_reduce"
    both = [(0, "in all_reduce"), (1, "in read"), (2, "in read")]
    assert grouped(both) == "ranks 1 and 2 in read, rank 0 in all_reduce"


DUMP = """\
noise
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/work/trainer/process/link.py", line 90 in _write

Current thread 0x00007f0000000002 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 415 in select
  File "<frozen importlib._bootstrap>", line 1 in _load
  File "/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 9 in _try_get_data
  File "/work/trainer/loop/training.py", line 172 in get_batch_samples
""".splitlines()


def test_the_place_is_the_innermost_function_that_is_not_pythons_own() -> None:
    assert stacks.place(DUMP) == "in _try_get_data"
    assert stacks.place(DUMP[:4]) == "in _write"
    assert stacks.place(DUMP[1:3]) == "in wait", "nothing else is known"
    assert stacks.place(["noise"]) is None


@pytest.fixture
def plain() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not know the signal: it would die of it."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_process_that_writes_no_stacks_is_not_asked(plain: subprocess.Popen[bytes]) -> None:
    assert not stacks.ask(plain.pid)
    assert not stacks.ask(2**22 + 1)
    time.sleep(0.1)
    assert plain.poll() is None


def test_a_stopped_process_is_seen_from_outside(plain: subprocess.Popen[bytes]) -> None:
    os.kill(plain.pid, signal.SIGSTOP)
    os.waitpid(plain.pid, os.WUNTRACED)
    state, told = stacks.seen_from_outside(plain.pid)
    assert state == "stopped"
    assert told[0].startswith(f"thread {plain.pid}: state T, in ")
    written: list[tuple[int, str]] = []
    hang = Hang("no step for 9 s", {0: plain.pid}, 4, lambda r, t: written.append((r, t)), 100.0)
    assert not hang.turn(100.0)
    assert hang.sentence == ""
    assert hang.turn(100.0 + 2 * ANSWER_S)
    assert hang.sentence == "no step for 9 s, rank 4 stopped"
    assert (0, told[0]) in written
    assert stacks.seen_from_outside(2**22 + 1) == ("no such process", [])


def test_a_hang_is_a_failure_but_not_after_a_notice() -> None:
    ends = [RankEnd(status=-9), RankEnd(status=None)]
    outcome = node_outcome(ends, notice=None, hang="no step for 9 s, rank 1 stopped")
    assert (outcome.code, outcome.reason, outcome.message) == (
        *(1, "hang", "no step for 9 s, rank 1 stopped"),
    )
    assert node_outcome(ends, notice="SIGTERM", hang="no step for 9 s").code == 76
