"""One writer: whoever has been replaced changes nothing and leaves with 79."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.local.backend import LocalBackend
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.operations.actions import cancel
from orchestrator.operations.submit import start_submission
from orchestrator.run_directory import attempts
from tests.harness import gates
from tests.harness.gates import Gate
from tests.harness.runs import Bench, Driven, kill, paused, prepared, wait_gone


def content(directory: Path) -> dict[str, bytes]:
    """Everything that decides about the run (not events, logs or summaries)."""
    skip = ("events", "logs", "summary.json", "heartbeats", "cache")
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and not any(s in p.parts for s in skip)
    }


def start_again(run: Driven) -> None:
    """A next submission although the first attempt still lives (its node seems lost)."""
    newest = attempts.read_submissions(run.storage)[-1]
    spec = replace(newest.spec, submission=newest.number + 1)
    start_submission(run.run, prepared(run.run, spec), newest.start, reason="requeue")


def test_an_older_attempt_paused_before_its_commit_cannot_commit(bench: Bench) -> None:
    writing = Gate(bench.folder, "save", 3)
    run = gates.submit(bench, Gate(bench.folder, "micro", 3, do="pause"), writing)
    run.until_step(3, attempt=1)
    run.notify("SIGTERM")
    writing.reached(run)
    older = run.tree()
    with paused(older):
        writing.open()
        start_again(run)
        end = run.drive()
        assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 2)
        before = run.records()
    wait_gone(older, 20.0)
    assert run.records() == before
    assert not [c for c in run.commits() if c[0] == 1 and c[2] == "notice"]
    verdicts = attempts.read_verdicts(run.storage, 1)
    assert [v.code for v in verdicts] == [79]
    calm = bench.submit()
    calm.drive()
    assert run.outcome() == calm.outcome()


def agent_exit(run: Driven, submission: int) -> int:
    """Start an agent for an old submission by hand, as a stale requeue would."""
    record = attempts.read_submissions(run.storage)[submission - 1]
    spec_file = run.run.registry.state_dir / "stale.json"
    spec_file.write_bytes(pretty(to_json(record.spec)))
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.agent", str(spec_file)],
        timeout=30,
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode


@pytest.mark.parametrize("why", ["done", "newer submission", "cancelled", "other job"])
def test_a_stale_start_exits_79_and_changes_nothing(bench: Bench, why: str) -> None:
    run = bench.submit(step_s=0.02 if why in ("done", "newer submission") else 1.0)
    run.until_step(1)
    submission = 1
    if why == "newer submission":
        run.notify("SIGTERM")
        run.until_attempt(2)
    if why == "cancelled":
        cancel(run.run)
    if why in ("done", "newer submission", "cancelled"):
        run.drive()
    before = content(run.directory)
    assert agent_exit(run, submission) == 79
    after = content(run.directory)
    if why == "other job":
        run.drive(lambda s: s.row["step"] >= 1)
        after = {k: after[k] for k in before}
    assert after == before


def test_submitting_twice_under_one_key_starts_one_job(bench: Bench) -> None:
    run = bench.submit(step_s=0.2)
    record = attempts.read_submissions(run.storage)[0]
    backend = LocalBackend(bench.registry.state_dir)
    submission = backend.prepare(run.run.job(), record.spec)
    known = run.job()
    assert backend.submit(submission, record.key) == known
    (bench.registry.state_dir / "jobs" / record.key / "id").unlink()
    assert backend.submit(submission, record.key) == known


def test_a_controller_lost_between_its_steps_is_taken_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after `submissions/2.json` stands and before the backend was asked."""
    run = bench.submit(step_s=0.05)
    run.until_step(3)
    run.notify("SIGTERM")

    def lost(*_: object) -> str:
        raise ConnectionError("the controller's machine went away")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.controller.reconcile.hand_over", lost)
        with pytest.raises(ConnectionError):
            run.drive()
    assert len(attempts.read_submissions(run.storage)) == 2
    assert run.job() is None
    assert run.drive().state == "SUCCEEDED"
    assert len(attempts.read_submissions(run.storage)) == 2


def test_after_a_reboot_the_run_goes_on(bench: Bench) -> None:
    """The noted job id is of another boot: that process does not live, whatever its pid."""
    run = bench.submit(step_s=0.05)
    run.until_step(6)
    kill(run.tree())
    run.wait_gone()
    path = run.directory / "submissions" / "000001-id.json"
    path.write_text(path.read_text().replace(str(run.job()), f"{os.getpid()}-1-00000000"))
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 2)


def test_a_dead_helper_is_replaced_and_the_attempt_goes_on(bench: Bench) -> None:
    run = bench.submit(step_s=0.1)
    run.until_step(4)
    helpers = [
        p for p in run.tree() if b"orchestrator.helper" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    assert len(helpers) == 1
    kill(helpers)
    end = run.drive()
    assert (end.state, end.row["attempt"]) == ("SUCCEEDED", 1)
    assert [e for e in run.events("warning") if "restarted" in e["data"]["message"]]


def test_a_helper_that_dies_after_the_cancel_still_ends_its_attempt(bench: Bench) -> None:
    run = bench.submit(step_s=0.05, save_s=1.0)
    run.until_step(4)
    helpers = [
        p for p in run.tree() if b"orchestrator.helper" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    cancel(run.run)
    kill(helpers)
    end = run.drive()
    assert (end.state, end.row["preemptions"]) == ("CANCELLED", 0)
    verdicts = attempts.read_verdicts(run.storage, 1)
    assert [(v.code, v.notice) for v in verdicts] == [(75, "cancel")]


def test_a_cancel_stays_cancelled(bench: Bench) -> None:
    run = bench.submit(step_s=0.05)
    run.until_step(3)
    assert cancel(run.run)
    assert run.drive().state == "CANCELLED"
    assert run.commits(), "saved first"
    assert cancel(run.run)
    assert run.look().state == "CANCELLED"
    assert len(attempts.read_claims(run.storage)) == 1


def test_cancelled_during_a_notice(bench: Bench) -> None:
    run = bench.submit(step_s=0.05, save_s=0.5)
    run.until_step(3)
    run.notify("SIGUSR1", 1)
    cancel(run.run)
    assert run.drive().state == "CANCELLED"
    assert len(attempts.read_submissions(run.storage)) == 1
