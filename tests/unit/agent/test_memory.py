"""The kernel's counter of processes killed for memory, and what a verdict says of it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from orchestrator.agent.memory import oom_kills
from orchestrator.agent.outcome import RankEnd, node_outcome

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"


@pytest.mark.parametrize(
    ("groups", "file", "text", "kills"),
    [
        ("0::/pod/c1\n", "pod/c1/memory.events", EVENTS, 2),
        ("0::/pod/c1\n", "memory.events", EVENTS, 2),
        ("9:pids:/p\n3:memory:/pod/c1\n", "memory/pod/c1/memory.oom_control", CONTROL, 4),
        ("9:pids:/p\n3:memory:/pod/c1\n", "memory/memory.oom_control", CONTROL, 4),
        ("3:memory:/pod\n", "memory/memory.oom_control", "oom_kill_disable 0\n", 0),
        ("9:pids:/p\n", "memory.events", EVENTS, 0),
        ("nonsense\n", "memory.events", EVENTS, 0),
    ],
)
def test_the_counter_of_the_own_group(
    tmp_path: Path, groups: str, file: str, text: str, kills: int
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(groups)
    (tmp_path / "mount" / file).parent.mkdir(parents=True)
    (tmp_path / "mount" / file).write_text(text)
    assert oom_kills(tmp_path / "mount", own) == kills


def test_nothing_is_known_where_the_kernel_has_no_groups(tmp_path: Path) -> None:
    assert oom_kills(tmp_path, tmp_path / "missing") == 0


KILLED = RankEnd(status=-signal.SIGKILL, at=1.0)
LEFT = RankEnd(status=1, message="a rank has left", at=2.0)


@pytest.mark.parametrize(
    ("end", "kills", "words"),
    [
        (KILLED, 1, "killed by the kernel: the memory limit of this job was reached"),
        (KILLED, 0, "ended with signal 9"),
        (RankEnd(status=-signal.SIGSEGV, at=1.0), 1, "ended with signal 11"),
        (RankEnd(status=1, message="KeyError: 'x'", at=1.0), 1, "KeyError: 'x'"),
    ],
)
def test_only_a_rank_that_was_killed_without_a_word_died_of_memory(
    end: RankEnd, kills: int, words: str
) -> None:
    outcome = node_outcome([LEFT, end], notice=None, oom_kills=kills)
    assert (outcome.reason, outcome.message) == ("crash", f"rank 1: {words}")
