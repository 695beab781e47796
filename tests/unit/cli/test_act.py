"""The commands that act: real runs of the torch-free trainer, started by the command line."""

from __future__ import annotations

import io
import shlex
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.common import get_run
from orchestrator.cli.services import follow, result
from orchestrator.cli.services import model_card as modelcard
from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.controller import loop
from orchestrator.controller.lease import Lease
from orchestrator.operations import submit
from orchestrator.run_directory import attempts
from orchestrator.storage.opening import open_storage
from tests.unit.cli.shells import JOB, Desk

# Agents outlive the command that starts them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
SECRET = "hf_aVeryS3cretValue"


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.15")


# --- submit ---------------------------------------------------------------------------------


def test_submit_waits_for_success_and_rm_removes_all_of_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = desk.json("submit", str(desk.job), "--wait")
    folder = Path(answer["run_dir"])
    assert desk.err.splitlines()[-1].startswith("SUCCEEDED  attempt 1  step 20/20  loss ")
    assert (folder / layout.JOB).read_text() == JOB
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert desk.row("digits")["state"] == "SUCCEEDED"

    desk("rm", "digits", code=2)
    assert "--yes" in desk.err
    kept = desk.bench.folder / "adapter"
    desk("rm", "digits", "--yes", "--keep-adapter", str(kept), code=73)
    assert "has no adapter_config.json" in desk.err
    assert not kept.exists()
    for answer_given, code in (("n\n", 130), ("y\n", 73)):
        terminal = io.StringIO(answer_given)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        desk("rm", "digits", "--keep-adapter", str(kept), code=code)
    assert folder.exists()
    (folder / "attempts/000001/checkpoints/checkpoint-20/adapter_config.json").write_text("{}")
    gone = desk.json("rm", "digits", "--yes", "--keep-adapter", str(kept))
    assert gone == {"run_id": answer["run_id"], "removed": True, "adapter": str(kept)}
    assert sorted(p.name for p in kept.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not folder.exists()
    assert desk.json("status") == {"runs": []}


def test_dry_run_prints_exactly_what_is_submitted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "new_run_id", lambda name, now: f"{name}-261124-abc123")
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    printed = desk("submit", str(desk.job), "--dry-run", "--set", "name=other")
    assert "nothing was submitted" in desk.err
    assert not (desk.bench.folder / "runs").exists()
    assert not (desk.bench.folder / "state").exists()
    assert desk.json("submit", str(desk.job), "--dry-run", "--set", "name=other") == {
        "run_id": "other-261124-abc123",
        "text": printed,
    }

    assert desk.submit("--set", "name=other") == "other-261124-abc123"
    handed = desk.bench.folder / "state/jobs/other-261124-abc123-1/spec.json"
    assert printed.partition("# SPEC_FILE:\n")[2] == handed.read_text()
    desk("cancel", "other")


def test_submit_says_where_the_run_is_and_what_to_do_next(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    text = desk("submit", str(desk.job))
    run_id = text.split()[1]
    assert f"  run directory  {desk.bench.folder}/runs/{run_id}\n" in text
    for command in ("status", "logs -f", "cancel"):
        assert f"qvl-orchestrate {command} {run_id}\n" in text


def test_a_field_that_lost_its_effect_is_named_and_stops_nobody(desk: Desk) -> None:
    desk("submit", str(desk.job), "--dry-run", "--set", "preemption.signals=[SIGTERM]")
    assert f"{desk.job}: preemption.signals has no effect and can be removed" in desk.err


def test_failure_gives_code_1_and_the_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_FAKE_CRASH_AT", "2:0")
    out = desk("submit", str(desk.job), "--set", "resources.gpus_per_node=1", "--wait", code=1)
    assert "FAILED  attempt 1" in desk.err
    assert "failures without a new checkpoint" in desk.err
    assert f"next: qvl-orchestrate logs {out.split()[1]}" in desk.err

    assert "ended already (FAILED)" in desk("cancel", "digits")
    monkeypatch.delenv("QVL_FAKE_CRASH_AT")
    desk("resume", "digits", "--wait")
    assert "SUCCEEDED" in desk.err


def test_control_c_ends_the_watching_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "refresh", interrupted)
    run_id = desk.submit("--wait", code=130)
    assert "no longer watching; the run goes on" in desk.err
    assert f"qvl-orchestrate cancel {run_id}" in desk.err
    desk.until(run_id, state="SUCCEEDED")


def test_wait_takes_up_a_run_that_has_lost_its_controller(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.detach, []

    def detach(registry: Any, run_id: str) -> int:
        calls.append(run_id)
        return real(registry, run_id) if len(calls) > 1 else 0

    monkeypatch.setattr(loop, "detach", detach)
    monkeypatch.setattr(follow, "CONTROLLER_S", 0.2)
    desk("submit", str(desk.job), "--wait")
    assert "SUCCEEDED" in desk.err


def test_a_terminal_gets_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = follow._Screen()
    row = {"state": "RUNNING", "attempt": 2, "step": 3, "total_steps": 400, "loss": 0.5}
    screen.show(row)
    screen.show(row)
    screen.show({**row, "step": 4}, "no answer")
    screen.end()
    assert terminal.getvalue() == (
        "\r\x1b[KRUNNING  attempt 2  step 3/400  loss 0.5000"
        "\r\x1b[KRUNNING  attempt 2  step 4/400  loss 0.5000  (no answer)\n"
    )


def test_elsewhere_only_notable_changes_get_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = follow._Screen()
    row = {"state": "RUNNING", "attempt": 1, "total_steps": 400, "loss": None}
    for step in range(100):
        screen.show({**row, "step": step})
    assert len(capsys.readouterr().err.splitlines()) == follow.PARTS // 4


# --- preempt, cancel, resume ----------------------------------------------------------------


def test_preempted_cancelled_and_resumed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly(monkeypatch)
    run_id = desk.submit()
    desk.until("digits", state="RUNNING", step=2)
    for argv in (["rm", "digits", "--yes"], ["resume", "digits"]):
        desk(*argv, code=78)
        assert "is at work" in desk.err
    answer = desk.json("preempt", "digits", "--signal", "SIGUSR1", "--rank", "1")
    assert answer == {"run_id": run_id, "signal": "SIGUSR1", "ranks": [1]}
    desk.until("digits", attempt=2, state="RUNNING")
    assert "SIGTERM delivered to its agent" in desk("preempt", run_id)
    desk.until("digits", attempt=3, state="RUNNING")

    assert "cancelled" in desk("cancel", "digits")
    reached = desk.until("digits", state="CANCELLED")["step"]
    end = time.monotonic() + 20
    while not desk.bench.registry.find(run_id).final and time.monotonic() < end:
        time.sleep(0.05)
    assert "ended already (CANCELLED)" in desk("cancel", "digits")
    assert "no run needs a controller" in desk("controller", "once")
    assert desk.row("digits")["state"] == "CANCELLED"
    desk("preempt", "digits", code=78)
    assert "nothing to preempt" in desk.err

    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.01")
    desk("resume", "digits", "--wait")
    row = desk.row("digits")
    assert (row["state"], row["step"], row["lost_steps"]) == ("SUCCEEDED", 20, 0)
    assert reached < 20
    desk("resume", "digits", code=78)
    assert "is finished" in desk.err
    assert "ended already (SUCCEEDED)" in desk("cancel", "digits")


def test_a_run_without_a_controller_is_cancelled_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    real = loop.detach
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    desk.submit()
    desk.until("digits", step=1)
    monkeypatch.setattr(loop, "detach", real)
    assert desk.json("cancel", "digits")["cancelled"]
    desk.until("digits", state="CANCELLED")


def test_a_changed_job_is_refused_at_once_until_the_change_is_allowed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    run_id = desk.submit()
    desk.until("digits", step=6)
    desk("cancel", "digits")
    desk.until("digits", state="CANCELLED")
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.01")
    changed = ["--job", str(desk.job), "--set", "training.learning_rate=5.0e-4"]
    desk("resume", "digits", *changed, code=78)
    assert "training.learning_rate: checkpoint 0.001, now 0.0005" in desk.err
    assert "--allow-change training.learning_rate" in desk.err
    assert desk.row("digits")["state"] == "CANCELLED"
    chosen = get_run(run_id)
    assert len(attempts.read_submissions(chosen.storage)) == 1, "nothing was submitted"
    desk("resume", "digits", *changed, "--wait", "--allow-change", "training.learning_rate")
    assert desk.row("digits")["state"] == "SUCCEEDED"
    # What is told of a result is the job that made it, not the first one.
    assert chosen.job().training["learning_rate"] == 5.0e-4
    assert chosen.job(attempt=1).training["learning_rate"] == 1.0e-3
    assert result.gather(chosen).job.training["learning_rate"] == 5.0e-4
    card = modelcard.model_card(result.gather(chosen), None)
    assert '"learning_rate": 0.0005' in card


def test_the_cure_of_a_bad_checkpoint_is_the_older_one_and_is_copied_as_it_stands(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    run_id = desk.submit()
    desk.until(run_id, step=12)
    desk("cancel", run_id)
    desk.until(run_id, state="CANCELLED")
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.01")
    listed = desk.lines("checkpoints", run_id)[0]
    older, newest = [c for c in listed if c["state"] == "committed"][-2:]
    adapter = Path(newest["path"]) / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"?")

    desk("resume", run_id, "--from", str(newest["step"]), "--wait", code=73)
    row = desk.row(run_id)
    assert (row["state"], row["reason"]) == ("HELD", "checkpoint")
    assert row["next"] == f"qvl-orchestrate resume {run_id} --from checkpoint-{older['step']}"
    desk(*shlex.split(row["next"])[1:], "--wait")
    assert desk.row(run_id)["state"] == "SUCCEEDED"


def test_secrets_reach_the_ranks_and_nothing_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    desk.job.write_text(JOB + "secrets: [MY_TOKEN]\n")
    desk("submit", str(desk.job), code=78)
    assert "secrets not set in this shell: MY_TOKEN\n  hint: export MY_TOKEN=..." in desk.err
    monkeypatch.setenv("MY_TOKEN", SECRET)
    assert SECRET not in desk("submit", str(desk.job), "--dry-run")
    run_id = desk.submit()
    row = desk.until(run_id, step=1)
    assert desk.files_with(SECRET) == [f"{run_id}.json"]
    stored = desk.bench.folder / "state" / "secrets" / f"{run_id}.json"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    pid = row["backend_job_id"].split("-")[0]
    assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()

    desk("cancel", run_id)
    desk.until(run_id, state="CANCELLED")
    assert not stored.exists()
    monkeypatch.delenv("MY_TOKEN")
    desk("resume", run_id, code=78)
    assert "secrets not set" in desk.err
    assert desk.row(run_id)["state"] == "CANCELLED"
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.01")
    desk("resume", run_id, "--wait")
    assert desk.files_with(SECRET) == []


# --- controller -----------------------------------------------------------------------------


def test_controller_once_drives_a_run_to_its_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    run_id = desk.submit()
    seen = []
    end = time.monotonic() + 20
    while "SUCCEEDED" not in seen and time.monotonic() < end:
        seen.append(desk.json("controller", "once")["state"])
        time.sleep(0.1)
    assert seen[-1] == "SUCCEEDED"
    assert desk("controller", "once") == "no run needs a controller now\n"
    assert desk.row(run_id)["state"] == "SUCCEEDED"


def test_controller_once_leaves_a_run_to_its_own_and_reports_faults(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    answer = desk.json("submit", str(desk.job))
    lease = Lease(open_storage(answer["run_dir"]), SystemClock())
    assert lease.acquire()
    assert desk("controller", "once") == "1 with a controller of their own\n"
    lease.release()
    (Path(answer["run_dir"]) / layout.RESOLVED).unlink()
    found = desk.json("controller", "once", code=73)
    assert found["run_id"] == answer["run_id"]
    assert "resolved.json" in found["error"]


def test_controller_run_prints_changes_until_it_is_interrupted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "detach", lambda registry, run_id: 0)
    run_id = desk.submit()
    passes = []

    def sleep(self: SystemClock, seconds: float) -> None:
        passes.append(seconds)
        time.sleep(0.05)
        if desk.bench.registry.find(run_id).final:
            raise KeyboardInterrupt

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    lines = desk("controller", "run", "--interval", "30").splitlines()
    assert lines[-1] == f"{run_id}  SUCCEEDED"
    assert len(lines) == len(set(lines)) <= len(passes)
    assert "interrupted" in desk.err


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        ("submit nowhere.yaml", 78, "nowhere.yaml: no such file"),
        ("submit JOB --set training.max_stepz=3", 78, "max_steps"),
        ("submit JOB --site nowhere.toml", 78, "no such site file"),
        ("submit JOB --dry-run --wait", 2, "--dry-run submits nothing"),
        ("submit", 2, "Missing argument 'JOB'"),
        ("preempt nobody", 3, "no run 'nobody'"),
        ("preempt nobody --signal SIGKILL", 2, "SIGKILL"),
        ("preempt nobody --rank -1", 2, "-1"),
        ("cancel nobody", 3, "no run 'nobody'"),
        ("resume nobody", 3, "no run 'nobody'"),
        ("rm nobody --yes", 3, "no run 'nobody'"),
        ("resume nobody --from 5 --restart-from scratch", 2, "leave out --from"),
        ("resume nobody --set training.seed=8", 2, "--set needs --job"),
        ("controller", 2, "once"),
        ("controller run --interval 0", 2, "0"),
    ],
)
def test_refused(desk: Desk, argv: str, code: int, text: str) -> None:
    desk(*argv.replace("JOB", str(desk.job)).split(), code=code)
    assert text in desk.err
    if "--" in argv and "controller" not in argv:
        answer = desk.json(*argv.replace("JOB", str(desk.job)).split(), code=code)
        assert answer["error"]["exit_code"] == code
