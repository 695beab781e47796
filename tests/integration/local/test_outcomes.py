"""What becomes of failures, refusals, out of memory, full machines and secrets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import Resources
from orchestrator.errors import ContractRefused, UserError
from orchestrator.operations import preflight
from orchestrator.operations.actions import resume
from orchestrator.run_directory import attempts
from tests.harness.runs import Bench


def test_the_same_error_three_times_without_progress_holds_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.submit(crash_at="7:1", step_s=0.5)  # step 5 is committed by then
    run.hurry()
    end = run.drive()
    assert (end.state, end.row["reason"], end.row["attempt"]) == ("HELD", "same-error", 4)
    assert "3 times in a row without a new checkpoint" in end.row["message"]
    assert end.row["next"] == f"qvl-orchestrate resume {run.run.run_id}"
    assert "rank 1: RuntimeError: crash (asked for)" in end.row["message"]
    with pytest.raises(UserError):
        resume(run.run, ref="latest", job=None) and resume(run.run)
    again = run.drive()
    assert again.state == "HELD"


def test_an_interpreter_that_never_starts_is_held_in_the_end(bench: Bench) -> None:
    run = bench.submit(replace(bench.job(), python="/bin/false"))
    run.hurry()
    end = run.drive()
    assert (end.state, end.row["reason"], end.row["attempt"]) == ("HELD", "never-starts", 0)
    assert "10 submissions in a row" in end.row["message"]
    resume(run.run)
    assert run.look().state != "HELD", "a person's resume gives it ten more tries"


def test_out_of_memory_shrinks_the_micro_batch_with_the_same_samples(bench: Bench) -> None:
    calm = bench.submit()
    calm.drive()
    run = bench.submit(oom_at="7:1")
    run.drive(lambda s: s.row["attempt"] >= 2)
    claims = attempts.read_claims(run.storage)
    assert [(c.plan.micro, c.plan.accumulation) for c in claims[:2]] == [(2, 2), (1, 4)]
    end = run.drive()
    assert (end.state, end.row["reason"]) == ("HELD", "same-error"), "at the floor: a failure"
    assert "out of memory" in end.row["message"]
    ours, theirs = run.curve(), calm.curve()
    assert all(ours[s].samples == theirs[s].samples for s in ours)


def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the checkpoint could not be read before the queue: the node compares by itself."""
    monkeypatch.setattr(preflight, "check_start", lambda *_: None)


def test_a_changed_gpu_count_is_held_and_nothing_allows_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.submit(step_s=0.05)
    run.until_step(6)
    run.run.storage.create("tombstone", b"{}")
    run.cancel_job()
    run.drive()
    job = bench.job(ranks=1)
    job = replace(job, resources=Resources(nodes=1, gpus_per_node=1))
    with pytest.raises(ContractRefused, match="GPUs per node: checkpoint 2, now 1"):
        resume(run.run, job=job)
    unseen(monkeypatch)
    resume(run.run, job=job)
    end = run.drive()
    assert (end.state, end.row["reason"]) == ("HELD", "contract")
    assert "GPUs per node: checkpoint 2, now 1" in end.row["message"]
    assert "--allow-change" not in end.row["message"]


def test_a_changed_setting_is_held_until_it_is_allowed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.submit(step_s=0.05)
    run.until_step(6)
    run.run.storage.create("tombstone", b"{}")
    run.cancel_job()
    run.drive()
    job = bench.job(training={"max_steps": 20, "seed": 7, "learning_rate": 2e-3})
    with pytest.raises(ContractRefused, match="--allow-change training.learning_rate"):
        resume(run.run, job=job)
    unseen(monkeypatch)
    resume(run.run, job=job)
    end = run.drive()
    assert end.state == "HELD"
    assert end.row["next"].endswith("--allow-change training.learning_rate")
    resume(run.run, job=job, allow_change=["training.learning_rate"])
    assert run.drive().state == "SUCCEEDED"


def test_resume_from_an_older_checkpoint_branches_there(bench: Bench) -> None:
    run = bench.submit(step_s=0.2)
    run.until_step(11)
    run.notify("SIGKILL")
    run.run.storage.create("tombstone", b"{}")
    run.drive()
    resume(run.run, ref="5" if (5 in [c[1] for c in run.commits()]) else None)
    end = run.drive()
    assert end.state == "SUCCEEDED"
    start = [e for e in run.events("resuming") if e["attempt"] == 2]
    assert start[0]["data"]["step"] == 5
    calm = bench.submit()
    calm.drive()
    assert run.outcome() == calm.outcome()


def test_restart_from_scratch_and_from_weights(bench: Bench) -> None:
    for kind in ("scratch", "weights"):
        run = bench.submit(step_s=0.05)
        run.until_step(6)
        run.run.storage.create("tombstone", b"{}")
        run.cancel_job()
        run.drive()
        resume(run.run, restart_from=kind)  # type: ignore[arg-type]
        assert run.drive().state == "SUCCEEDED"
        assert run.curve()[1].attempt == 2


def test_a_second_run_waits_for_its_seat(bench: Bench) -> None:
    first = bench.submit(parallel=1, step_s=0.1)
    first.until_step(1)
    second = bench.submit(parallel=1, step_s=0.01)
    assert second.drive(lambda s: s.state == "QUEUED").state == "QUEUED"
    second.drive(
        lambda s: (
            (job := second.job()) is not None
            and second.run.backend.observe([job])[job].phase == "pending"
        )
    )
    assert not attempts.read_claims(second.storage)
    assert first.drive().state == "SUCCEEDED"
    assert second.drive().state == "SUCCEEDED"


def test_secrets_reach_the_ranks_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_ThisIsASecretValue"
    monkeypatch.setenv("MY_TOKEN", secret)
    run = bench.submit(replace(bench.job(), secrets=("MY_TOKEN",)), step_s=0.1)
    path = bench.registry.state_dir / "secrets" / f"{run.run.run_id}.json"
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    run.until_step(1)
    environments = [Path(f"/proc/{p}/environ").read_bytes() for p in run.tree()]
    assert any(secret.encode() in e for e in environments)
    for pid in run.tree():
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    run.drive()
    assert not path.exists()
    for file in [*run.directory.rglob("*"), *bench.registry.state_dir.rglob("*")]:
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def test_a_missing_secret_is_refused_at_submit(bench: Bench) -> None:
    with pytest.raises(UserError, match="NOT_THERE"):
        bench.submit(replace(bench.job(), secrets=("NOT_THERE",)))
    assert not bench.registry.runs()


def test_everything_is_private(bench: Bench) -> None:
    before = os.umask(0)
    try:
        run = bench.submit()
        run.drive()
    finally:
        os.umask(before)
    for path in [run.directory, *run.directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
