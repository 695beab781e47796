"""Many runs, few questions: what Slurm is asked for when each run asks for its own job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import commands, queue
from orchestrator.backends.slurm.commands import Answer
from orchestrator.backends.slurm.queue import ACCOUNTED_S, FRESH_S, Queue
from orchestrator.errors import Unreachable

HEAD = "JOBID|STATE|REASON|RESTART_COUNT|EXIT_CODE|END_TIME|NAME|\n"


def ref(job_id: str) -> JobRef:
    """As Slurm and its accounting call that job here."""
    return JobRef(job_id, f"run-{job_id}")


class Clients:
    """squeue and sacct that count; Slurm knows `living`, the accounting `ended`."""

    def __init__(self) -> None:
        self.living = [str(n) for n in range(1, 1001)]
        self.ended = [str(n) for n in range(1001, 2001)]
        self.calls: list[str] = []
        self.silent: set[str] = set()
        self.disabled: set[str] = set()
        self.now = 1000.0

    def run(self, argv: list[str], **_: object) -> Answer:
        self.calls.append(argv[0])
        if argv[0] in self.silent:
            raise Unreachable(f"{argv[0]}: nobody answers")
        if argv[0] in self.disabled:
            return Answer(1, "", "Slurm accounting storage is disabled")
        if argv[0] == "squeue":
            rows = "".join(f"{i}|RUNNING|None|0|0|N/A|run-{i}|\n" for i in self.living)
            return Answer(0, HEAD + rows, "")
        wanted = next(a for a in argv if a.startswith("--jobs=")).partition("=")[2].split(",")
        rows = "".join(f"{i}|FAILED|1:0|5|run-{i}\n" for i in self.ended if i in wanted)
        return Answer(0, rows, "")

    def queue(self) -> Queue:
        """As each run has one of its own."""
        return Queue(lambda: self.now, lambda: self.now)


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Clients:
    found = Clients()
    monkeypatch.setattr(commands, "run", found.run)
    monkeypatch.setattr(queue, "_answers", queue._Answers())
    return found


def test_two_thousand_runs_one_squeue_and_one_sacct(clients: Clients) -> None:
    jobs = [ref(i) for i in clients.living + clients.ended]
    ahead = clients.queue().observe(jobs)
    alone = {j: clients.queue().observe([j])[j] for j in jobs}
    assert alone == ahead
    assert clients.calls == ["squeue", "sacct"]
    first, last = alone[ref("1")], alone[ref("2000")]
    assert (first.phase, last.phase, last.ending) == (
        "running",
        "gone",
        "failed",
    )


def test_what_nobody_knows_is_not_asked_for_again_and_again(clients: Clients) -> None:
    for _ in range(5):
        seen = clients.queue().observe([ref("9999")])[ref("9999")]
        assert (seen.phase, seen.forgotten) == ("unknown", True)
    assert clients.calls == ["squeue", "sacct"]
    clients.now += ACCOUNTED_S
    clients.ended.append("9999")
    assert clients.queue().observe([ref("9999")])[ref("9999")].ending == "failed"


def test_answers_grow_old(clients: Clients) -> None:
    clients.queue().observe([ref("1")])
    clients.living.remove("1")
    clients.now += FRESH_S
    assert clients.queue().observe([ref("1")])[ref("1")].phase == "unknown"


def test_a_silent_slurm_is_waited_for_once(clients: Clients) -> None:
    clients.silent.add("squeue")
    for job in map(ref, ("1", "2", "3")):
        with pytest.raises(Unreachable, match="nobody answers"):
            clients.queue().observe([job])
    assert clients.calls == ["squeue"]
    clients.silent.clear()
    clients.now += FRESH_S
    assert clients.queue().observe([ref("1")])[ref("1")].phase == "running"


@pytest.mark.parametrize("disabled", [False, True])
def test_where_there_is_no_accounting_it_is_asked_once_a_minute(
    clients: Clients, disabled: bool
) -> None:
    (clients.disabled if disabled else clients.silent).add("sacct")
    for job in map(ref, clients.ended[:3]):
        assert clients.queue().observe([job])[job].forgotten
    assert clients.calls == ["squeue", "sacct"]
    clients.now += ACCOUNTED_S
    clients.silent.clear()
    clients.disabled.clear()
    assert clients.queue().observe([*map(ref, clients.ended)])[ref("1001")].ending == "failed"


def test_how_a_forgotten_job_ended_is_asked_for_once(clients: Clients) -> None:
    """A pass over thousands of runs may last longer than any answer is fresh."""
    clients.queue().observe([*map(ref, clients.ended)])
    clients.now += 10 * ACCOUNTED_S
    assert clients.queue().observe([ref("2000")])[ref("2000")].ending == "failed"
    assert clients.calls == ["squeue", "sacct", "squeue"]


@pytest.mark.parametrize(
    "asked_anew",
    [lambda q: q.find("run-1"), lambda q: (q.forget(), q.observe([ref("1")]))],
    ids=["find", "forget"],
)
def test_a_submission_is_searched_for_in_a_new_answer(
    clients: Clients, asked_anew: Callable[[Queue], object]
) -> None:
    clients.queue().observe([ref("1")])
    asked_anew(clients.queue())
    assert clients.calls == ["squeue", "squeue"]


def test_a_job_of_the_same_id_with_another_name_is_another_one(clients: Clients) -> None:
    mine, other = JobRef("1", "digits-1"), JobRef("1001", "digits-2")
    found = clients.queue().observe([mine, other])
    assert [(o.phase, o.forgotten) for o in found.values()] == [("unknown", True)] * 2
    assert not clients.queue().knows(mine)
    assert clients.queue().knows(ref("1"))


def test_what_slurm_forgot_does_not_run_though_the_accounting_never_heard_of_its_end(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Slurm that lost its state never tells its accounting how those jobs ended."""

    def run(argv: list[str], **_: object) -> Answer:
        rows = "7|RUNNING|0:0|Unknown|run-7\n7|COMPLETED|0:0|5|other\n"
        return Answer(0, HEAD if argv[0] == "squeue" else rows, "")

    monkeypatch.setattr(commands, "run", run)
    seen = clients.queue().observe([ref("7")])[ref("7")]
    assert (seen.phase, seen.forgotten) == ("unknown", True)
    assert clients.queue().observe([JobRef("7", "other")])[JobRef("7", "other")].phase == "gone"
