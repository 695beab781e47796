"""The log of a run is lost, in whole or in part: held, nothing deleted, made anew when told."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.errors import UserError
from orchestrator.operations.repair import repair
from orchestrator.run_directory import attempts
from tests.harness import lostlog
from tests.harness.runs import Bench, Driven, kill
from tests.integration.local.conftest import command
from tests.integration.local.test_ownership import start_again


def preempted(bench: Bench) -> Driven:
    """A run whose first attempt has ended by a notice; nobody has looked at it since."""
    run = bench.submit(step_s=0.05)
    run.until_step(12)
    run.notify("SIGTERM")
    run.wait_gone()
    return run


def saved(run: Driven) -> int:
    return max(step for attempt, step, _ in run.commits() if attempt == 1)


@pytest.mark.parametrize("lost", lostlog.LOSSES)
def test_it_is_held_and_goes_on_once_repaired(bench: Bench, lost: lostlog.Choice) -> None:
    run = preempted(bench)
    newest = saved(run)
    before = lostlog.held_with_everything_there(run, lost)
    lostlog.repaired_and_finished(run, before)
    assert run.events("resuming")[-1]["data"]["step"] == newest, "nothing is computed again"
    calm = bench.submit()
    calm.drive()
    assert run.outcome() == calm.outcome()


def test_an_agent_that_is_on_its_way_refuses_to_start(bench: Bench) -> None:
    run = preempted(bench)
    before = lostlog.files(run.storage)
    for entry in run.storage.list(layout.LOG):
        run.storage.delete(entry.path)
    start_again(run)
    held = run.drive()
    assert held.state == "HELD"
    assert lostlog.files(run.storage) == before
    assert run.storage.list(layout.LOG) == []
    assert attempts.attempt_numbers(run.storage) == [1]


def test_a_live_attempt_that_loses_its_log_deletes_nothing_any_more(bench: Bench) -> None:
    job = bench.job()
    job = replace(job, checkpoint=replace(job.checkpoint, keep_last=1))
    run = bench.submit(job, step_s=0.05)
    run.until_step(7)
    (run.directory / layout.log_record(1)).unlink()
    before = lostlog.files(run.storage)
    assert run.drive().settled
    assert before.items() <= lostlog.files(run.storage).items()
    told = [e["data"]["message"] for e in run.events("warning")]
    assert any(t.startswith("retention: ") and "nothing is deleted" in t for t in told), told


def test_what_cannot_be_verified_is_marked_and_kept(bench: Bench) -> None:
    run = preempted(bench)
    folder = run.directory / layout.checkpoint_dir(1, saved(run))
    before = lostlog.held_with_everything_there(run, lostlog.everything)
    adapter = folder / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"?")
    found = lostlog.repaired_and_finished(run, before)
    assert [bool(c.fault) for c in found.found] == [False, True]
    assert run.events("resuming")[-1]["data"]["step"] == found.found[0].body.step
    assert adapter.exists(), "its files are a person's to look at"


def test_a_repair_that_was_cut_off_is_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = preempted(bench)
    before = lostlog.held_with_everything_there(run, lostlog.one_between)
    put, puts = type(run.storage).put, []

    def cut_off(self: object, path: str, data: bytes) -> None:
        puts.append(path)
        if path == layout.log_record(3):
            raise KeyboardInterrupt
        put(self, path, data)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(run.storage), "put", cut_off)
        with pytest.raises(KeyboardInterrupt):
            repair(run.run)
    assert layout.log_record(2) in puts
    lostlog.repaired_and_finished(run, before)


def test_the_copy_beside_the_log_tells_what_was_lost(bench: Bench) -> None:
    run = preempted(bench)
    records = run.records()
    lines = [run.storage.get(layout.log_record(r.seq)) for r in records]
    run.storage.put(layout.LOG_COPY, b"\n".join(lines))
    before = lostlog.held_with_everything_there(run, lostlog.everything)
    found = lostlog.repaired_and_finished(run, before)
    assert (found.kept, found.found) == (len(records), ())
    assert run.records()[: len(records)] == records


def test_nothing_is_repaired_while_a_job_is_there(bench: Bench) -> None:
    run = bench.submit(step_s=0.5)
    run.until_step(1)
    with pytest.raises(UserError, match="has a job"):
        repair(run.run)
    kill(run.tree())


def test_at_the_command_line(folder: Path) -> None:
    done = command(folder, "submit", "job.yaml", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
    whole = command(folder, "repair", run_id)
    assert (whole.returncode, whole.stdout) == (0, "the run's log is whole: nothing to repair\n")
    there = json.loads(command(folder, "checkpoints", run_id, "--json").stdout)
    kept = sorted(c["step"] for c in there if c["state"] == "committed")
    assert kept[-1] == 20
    (log,) = folder.glob(f"runs/{run_id}/log")
    for name in os.listdir(log):
        (log / name).unlink()
    shown = command(folder, "repair", run_id, "--json")
    assert shown.returncode == 73, shown.stderr
    answer = json.loads(shown.stdout)
    assert (answer["repaired"], answer["next"]) == (False, f"qvl-orchestrate repair {run_id} --yes")
    assert [c["step"] for c in answer["checkpoints"]] == kept
    assert not any(c["fault"] for c in answer["checkpoints"])
    made = command(folder, "repair", run_id, "--yes")
    assert made.returncode == 0, made.stderr
    assert "verified" in made.stdout
    assert f"next: qvl-orchestrate resume {run_id}" in made.stdout
    assert command(folder, "repair", run_id).returncode == 0
