"""The table of endings on the fake Slurm: what each of them makes of a run."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from orchestrator.backends.slurm import commands
from orchestrator.clock import SystemClock
from orchestrator.controller import node_exclusion
from orchestrator.errors import UserError
from orchestrator.operations import status
from orchestrator.operations.actions import cancel
from orchestrator.run_directory import attempts
from tests.harness import runs
from tests.harness.fake_slurm.cluster import FakeCluster
from tests.harness.runs import Driven, saved_all
from tests.harness.slurm_runs import SlurmBench, causes, job_id
from tests.harness.waiting import until

pytestmark = pytest.mark.slurm

STEP_S = 0.1


def finished(run: Driven, calm: tuple[Any, ...], *, attempts_: int, submissions: int = 1) -> None:
    end = run.drive()
    assert end.state == "SUCCEEDED", (end.row, run.logs())
    assert end.row["attempt"] == attempts_
    assert len(attempts.read_submissions(run.storage)) == submissions
    assert run.outcome() == calm


def until_job(fake: FakeCluster, run: Driven, *states: str) -> None:
    until(lambda: fake.job(job_id(run))["state"] in states, why=lambda: fake.job(job_id(run)))


@pytest.mark.parametrize("version", ["22.05", "24.05"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preempted(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...], number: int, version: str
) -> None:
    fake.set(grace_preempt=version == "24.05")
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.preempt(job_id(run), number=number)
    finished(run, calm, attempts_=2)
    assert fake.job(job_id(run))["restarts"] == 1
    assert causes(run) == ["preempted"]


def test_finishing_in_the_grace_is_done_though_slurm_starts_it_again(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    """From 24.05 on, whatever ends in the grace is started again: it must find that it is done."""
    fake.set(grace_preempt=True)
    run = bench.submit(step_s=0.02)
    run.until_step(1)
    fake.change(job_id(run), preempt=time.time() + 30.0)
    finished(run, calm, attempts_=1)
    until_job(fake, run, "COMPLETED")
    job = fake.job(job_id(run))
    assert (job["restarts"], job["status"]) == (1, 0)
    assert len(attempts.read_claims(run.storage)) == 1


def test_two_nodes_one_notice_stops_both(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    from tests.harness.fake_slurm import state

    run = bench.submit(bench.job(nodes=2), step_s=STEP_S)
    run.until_step(3)
    _, second = state.tasks(job_id(run))
    state.kill([second], signal.SIGTERM)
    finished(run, calm, attempts_=2)
    assert fake.job(job_id(run))["restarts"] == 1


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_node_whose_agent_never_comes_is_named(
    bench: SlurmBench, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, stuck: int
) -> None:
    """No attempt is claimed, no node is held until the time limit, and three are enough."""
    monkeypatch.setattr(runs, "SiteSettings", partial(runs.SiteSettings, node_lost_s=0.4))
    fake.set(stuck_nodes=[stuck])
    run = bench.submit(bench.job(nodes=2))
    run.drive(lambda s: s.row["message"] == f"waits for 1 of 2 nodes: node {stuck}")
    run.hurry()
    end = run.drive(seconds=150.0)
    assert (end.state, end.row["reason"], end.row["attempt"]) == ("HELD", "never-starts", 0)
    words = f"1 of 2 nodes did not come within 6 s: node {stuck}"
    assert words in end.row["message"], end.row
    assert f"here: fake{1 - stuck}" in end.row["message"], end.row
    assert len(attempts.read_submissions(run.storage)) == 3
    until_job(fake, run, "FAILED")


def test_the_time_limit_came_before_the_save_was_through(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    fake.set(kill_wait_s=0.5)
    run = bench.submit(step_s=STEP_S, save_s=1.0)
    run.drive(lambda _: bool(run.commits()))
    fake.time_limit(job_id(run))
    finished(run, calm, attempts_=2, submissions=2)
    assert attempts.read_submissions(run.storage)[1].ended == "timeout"


def test_three_time_limits_without_a_checkpoint_hold_the_run(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    fake.set(kill_wait_s=0.3)
    run = bench.submit(step_s=0.2, save_s=5.0)
    for attempt in (1, 2, 3):
        run.drive(lambda s, n=attempt: s.row["attempt"] == n and s.state == "RUNNING")
        fake.time_limit(job_id(run))
        until_job(fake, run, "TIMEOUT")
    end = run.drive()
    assert (end.state, end.row["reason"], end.row["attempt"]) == ("HELD", "time-limit", 3)
    assert "raise resources.time_limit" in end.row["message"]


@pytest.mark.parametrize("final", [False, True], ids=["requeued", "for good"])
def test_a_node_fails(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...], final: bool
) -> None:
    """No failure of the run's: no back-off, nothing off its budget."""
    run = bench.submit(step_s=STEP_S)
    run.until_step(6)
    fake.fail_node(job_id(run), final=final)
    if final:
        until_job(fake, run, "NODE_FAIL")
        fake.change(job_id(run), end=time.time() - 100)
    finished(run, calm, attempts_=2, submissions=2 if final else 1)


def test_killed_by_what_the_failed_node_left(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(6)
    fake.fail_node(job_id(run))
    run.until_attempt(2)
    fake.kill_job(job_id(run))
    until_job(fake, run, "FAILED")
    step = run.look()
    assert step.state in ("REQUEUED", "STARTING", "RUNNING"), step.row
    finished(run, calm, attempts_=3, submissions=2)


def test_preempted_where_the_site_forbids_to_requeue(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.change(job_id(run), requeue=False)
    fake.preempt(job_id(run))
    until_job(fake, run, "FAILED", "PREEMPTED")
    fake.change(job_id(run), end=time.time() - 100)
    finished(run, calm, attempts_=2, submissions=2)
    shapes = {(s.spec.nodes, s.spec.gpus_per_node) for s in attempts.read_submissions(run.storage)}
    assert shapes == {(1, 2)}
    assert run.look().row["lost_steps"] == 0


def test_completed_without_a_word_was_a_lost_requeue(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    """As where srun ends with 0 after a node failure, in a template that takes that for good."""
    run = bench.submit(step_s=STEP_S)
    run.until_step(6)
    fake.fail_node(job_id(run), final=True)
    until_job(fake, run, "NODE_FAIL")
    fake.change(job_id(run), state="COMPLETED", status=0)
    finished(run, calm, attempts_=2, submissions=2)


def test_slurm_has_forgotten_the_job_while_nobody_looked(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.change(job_id(run), requeue=False)
    fake.preempt(job_id(run))
    until_job(fake, run, "FAILED", "PREEMPTED")
    fake.change(job_id(run), purged=True)
    finished(run, calm, attempts_=2, submissions=2)


@pytest.mark.parametrize("accounting", [True, False])
def test_a_forgotten_scancel_is_still_a_cancel(
    bench: SlurmBench, fake: FakeCluster, accounting: bool
) -> None:
    """The accounting knows it; without one, the attempt itself learnt it on its way out."""
    fake.set(sacct=accounting)
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.change(job_id(run), requeue=True)
    run.cancel_job()
    until_job(fake, run, "CANCELLED")
    fake.change(job_id(run), purged=True)
    end = run.drive()
    assert (end.state, end.row["preemptions"]) == ("CANCELLED", 0)
    assert len(attempts.read_submissions(run.storage)) == 1


def test_scancel_is_not_undone_by_the_requeue_that_the_job_asks_for(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    assert commands.run(["scancel", job_id(run)]).ok
    end = run.drive()
    assert (end.state, fake.job(job_id(run))["state"]) == ("CANCELLED", "CANCELLED")
    assert fake.job(job_id(run))["restarts"] == 0
    assert saved_all(run)


def test_a_slurm_that_does_not_answer_is_unknown_and_nothing_is_done(
    bench: SlurmBench, fake: FakeCluster, calm: tuple[Any, ...]
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.set(down=True)
    fake.kill_job(job_id(run))
    time.sleep(0.5)
    assert run.look().state == "UNKNOWN"
    assert len(attempts.read_submissions(run.storage)) == 1
    fake.set(down=False)
    run.hurry()
    finished(run, calm, attempts_=2, submissions=2)


def test_cancelled_by_us_between_two_starts(bench: SlurmBench, fake: FakeCluster) -> None:
    fake.set(eligible_s=3.0)
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.preempt(job_id(run))
    until_job(fake, run, "PENDING")
    assert cancel(run.run)
    assert run.drive().state == "CANCELLED"
    assert fake.job(job_id(run))["state"] == "CANCELLED"


def test_a_save_that_outlasts_the_real_grace_ends_in_time(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    """The job file believes in 10 s, Slurm says 2: the agent leaves before the kill."""
    fake.set(grace_s=2.0)
    run = bench.submit(step_s=STEP_S, save_s=20.0)
    run.until_step(3)
    fake.preempt(job_id(run))
    run.until_attempt(2)
    assert fake.job(job_id(run))["restarts"] == 1
    verdicts = attempts.read_verdicts(run.storage, 1)
    assert [v.code for v in verdicts] == [76]


def test_a_crash_on_one_node_ends_the_others_though_they_hang(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    """A hung collective never ends by itself; the attempt is a crash, and no preemption."""
    run = bench.submit(bench.job(nodes=2), step_s=STEP_S, crash_at="7:1", hang_at="7:0")
    until_job(fake, run, "FAILED", "COMPLETED")
    step = run.look()
    assert (step.state, step.row["preemptions"]) == ("REQUEUED", 0)
    assert fake.job(job_id(run))["restarts"] == 0
    codes = {v.slot: v.code for v in attempts.read_verdicts(run.storage, 1)}
    assert codes == {0: 1, 1: 1}


def test_a_batch_script_that_refuses_is_held_with_its_last_words(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    """A missing module, say: nothing is gained by trying ten times."""
    setup = ["echo no such module: cuda/99 >&2; exit 78"]
    run = bench.submit(bench.job(slurm={"partition": "preemptible", "setup": setup}))
    until_job(fake, run, "FAILED")
    end = run.drive()
    assert (end.state, end.row["reason"]) == ("HELD", "refused")
    assert "no such module: cuda/99" in end.row["message"]
    assert len(attempts.read_submissions(run.storage)) == 1


LIMIT = (
    "Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize("limit", ["AssocMaxSubmitJobLimit", "QOSGrpSubmitJobsLimit"])
def test_a_limit_on_submitted_jobs_is_waited_for(
    bench: SlurmBench, fake: FakeCluster, limit: str
) -> None:
    fake.set(full=f"{limit}\nsbatch: error: {LIMIT}")
    run = bench.submit(step_s=0.01)
    for _ in range(2):
        step = run.look()
        assert (step.state, step.row["reason"], step.settled) == ("QUEUED", "submit-limit", False)
        assert limit in step.row["message"]
    entry = bench.registry.find(run.run.run_id)
    assert limit in status.snapshot(bench.registry, SystemClock(), [entry])[0].row["message"]
    fake.set(full="")
    assert run.drive().state == "SUCCEEDED"
    assert len(attempts.read_submissions(run.storage)) == 1


def test_a_job_that_no_waiting_would_help_is_refused(bench: SlurmBench, fake: FakeCluster) -> None:
    """The same words end sbatch's complaint about a job that is too large for its account."""
    fake.set(full=f"QOSMaxGRESPerJob\nsbatch: error: {LIMIT}")
    with pytest.raises(UserError, match="QOSMaxGRESPerJob"):
        bench.submit(step_s=0.01)


class Later(SystemClock):
    """A clock on which a back-off of minutes is over, and a day is not."""

    def now(self) -> float:
        return super().now() + 7200.0


def test_a_node_on_which_two_attempts_died_is_kept_away_from_until_it_is_cleared(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    """The jobs of every run; the fake's first node is called fake0."""
    run = bench.submit(step_s=STEP_S, crash_at="3:0")
    until_job(fake, run, "FAILED")
    run.look()
    assert not node_exclusion.excluded(bench.registry, SystemClock().now()), (
        "one death is no pattern"
    )
    run.run = replace(run.run, clock=Later())
    run.look()
    until_job(fake, run, "FAILED")
    run.look()
    (bad,) = node_exclusion.excluded(bench.registry, SystemClock().now())
    assert (bad.node, bad.deaths) == ("fake0", 2)
    assert "crash (asked for)" in bad.error

    job = bench.job(slurm={"partition": "preemptible", "exclude": "old[1-2]"})
    other = bench.submit(job, step_s=0.01)
    assert fake.job(job_id(other))["exclude"] == "old[1-2],fake0"
    assert other.drive().state == "SUCCEEDED"
    bench.registry.forgive(["fake0"])
    run.look()
    assert not node_exclusion.excluded(bench.registry, SystemClock().now()), (
        "seen again, forgiven still"
    )
    third = bench.submit(step_s=0.01)
    assert fake.job(job_id(third))["exclude"] == ""
    assert third.drive().state == "SUCCEEDED"


@pytest.mark.parametrize("news", [{"name": "other-1"}, {"user": 4711}], ids=["name", "user"])
def test_an_id_that_is_another_job_s_by_now_is_left_alone(
    bench: SlurmBench, fake: FakeCluster, news: dict[str, Any]
) -> None:
    """Slurm has lost its state and counts anew: the run's id belongs to somebody else's job."""
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.change(job_id(run), **news)
    assert cancel(run.run)
    run.look()
    job = fake.job(job_id(run))
    assert (job["requeue"], job["why"], job["kill_at"]) == (True, "", None), "never cancelled"
    with pytest.raises(UserError, match="knows no job"):
        run.notify()
    run.drive(lambda s: s.state == "CANCELLED")  # its own agent has seen the tombstone


def test_a_job_does_not_requeue_the_one_that_has_its_id_by_now(
    bench: SlurmBench, fake: FakeCluster
) -> None:
    run = bench.submit(step_s=STEP_S)
    run.until_step(3)
    fake.change(job_id(run), name="other-1", grace_preempt=False)
    fake.preempt(job_id(run))
    until_job(fake, run, "FAILED", "PENDING")
    job = fake.job(job_id(run))
    assert (job["state"], job["restarts"]) == ("FAILED", 0)
    assert "is another one by now" in run.logs()


@pytest.mark.parametrize("end", ["requeued", "cancelled"])
def test_a_crash_that_slurm_holds_is_started_anew_or_ended(
    bench: SlurmBench, fake: FakeCluster, end: str
) -> None:
    """RequeueExitHold leaves a job in SPECIAL_EXIT until somebody releases it."""
    run = bench.submit(step_s=STEP_S, crash_at="7:0")
    until_job(fake, run, "FAILED")
    held = job_id(run)
    fake.change(held, state="SPECIAL_EXIT", reason="JobHeldUser", restarts=1)
    step = run.look()
    assert (step.state, step.row["reason"]) == ("REQUEUED", "failed (crash)"), step.row
    assert fake.job(held)["state"] == "SPECIAL_EXIT"
    if end == "cancelled":
        assert cancel(run.run)
        assert run.drive().state == "CANCELLED"
    else:
        run.hurry()
        run.until_attempt(2)
        assert job_id(run) != held
    assert fake.job(held)["state"] == "CANCELLED"
