"""The entry point: exit codes, messages, JSON alone on stdout, pipes and locales."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator import errors
from orchestrator.cli import main as entry
from orchestrator.registry.store import Registry, RunEntry

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty state folder; SIGPIPE as it was."""
    before = signal.getsignal(signal.SIGPIPE)
    monkeypatch.setenv("QVL_STATE_DIR", str(tmp_path / "state"))
    yield tmp_path / "state"
    signal.signal(signal.SIGPIPE, before)


def failing(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """Every command raises `fault`."""

    @click.command()
    @click.option("--json", is_flag=True)
    def command(json: bool) -> None:
        raise fault

    monkeypatch.setattr(entry.LazyGroup, "get_command", lambda *_: command)


def shell(*argv: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *argv],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=False,
    )


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.NoSuchRun("x"), 3),
        (errors.Unreachable("x"), 69),
        (errors.StorageError("x"), 69),
        (errors.CheckpointError("x"), 73),
        (errors.LogDamaged("x"), 73),
        (errors.UserError("x"), 78),
        (errors.JobFileError("x", file="job.yaml", line=3, path="lora.r"), 78),
        (errors.ContractRefused("x"), 78),
        (errors.InternalError("x"), 1),
        (click.UsageError("x"), 2),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_each_fault_has_its_exit_code_and_json_alone_on_stdout(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: BaseException,
    code: int,
) -> None:
    failing(monkeypatch, fault)
    assert entry.main(["status"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err
    assert entry.main(["status", "--json"]) == code
    out, again = capsys.readouterr()
    error = json.loads(out)["error"]
    assert set(error) == {"message", "hint", "exit_code"}
    assert error["exit_code"] == code
    assert again.strip()


def test_an_error_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, errors.NoSuchRun("no run 'x'", hint="`status` lists all"))
    entry.main(["logs", "--json"])
    out, err = capsys.readouterr()
    assert err == "error: no run 'x'\n  hint: `status` lists all\n"
    assert json.loads(out)["error"]["hint"] == "`status` lists all"


def test_a_fault_of_ours_leaves_a_private_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    failing(monkeypatch, RuntimeError("surprise"))
    assert entry.main(["status"]) == 1
    err = capsys.readouterr().err
    (report,) = (state / "crashes").iterdir()
    assert err == (
        f"internal error: RuntimeError: surprise\n  hint: please report it, with {report}\n"
    )
    text = report.read_text()
    assert "Traceback" in text
    assert "['status']" in text
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert stat.S_IMODE(report.parent.stat().st_mode) == 0o700


def test_a_report_that_cannot_be_written_is_no_second_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QVL_STATE_DIR", "/proc/nowhere")
    failing(monkeypatch, RuntimeError("surprise"))
    assert entry.main(["status"]) == 1
    assert capsys.readouterr().err == "internal error: RuntimeError: surprise\n"


def test_a_misspelt_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["sumbit"]) == 2
    assert "Did you mean 'submit'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_every_command_has_json_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"qvl-orchestrate {name}" in page.split("Example", 1)[1]
    verbs = {
        "controller": ["once", "run", "unit"],
        "nodes": ["list", "clear"],
        "template": ["show", "diff", "check", "init"],
    }
    for verb in verbs.get(name, ()):
        assert entry.main([name, verb, "--help"]) == 0
        page = capsys.readouterr().out
        assert "--json" in page
    assert "--json" in page


def test_help_lists_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in entry.COMMANDS)
    assert all(f"\n    {code} " in page for code in (0, 1, 2, 3, 69, 73, 78))
    assert "_QVL_ORCHESTRATE_COMPLETE" in page


@pytest.mark.parametrize(
    "name",
    ["logs", "events", "metrics", "checkpoints", "preempt", "cancel", "resume", "rm", "status"],
)
def test_an_unknown_run_is_3_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([name, "nothing", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "no run 'nothing'"


def test_a_job_file_that_is_missing_is_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["submit", "/nowhere/job.yaml", "--json"]) == 78
    assert "/nowhere/job.yaml" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_reader_that_leaves_early_is_no_fault() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_any_locale_will_do(state: Path, locale: dict[str, str]) -> None:
    registry = Registry(state)
    registry.add(
        RunEntry(
            run_id="überlauf-1",
            name="überlauf",
            backend="local",
            uri="/nowhere/ü",
            created_at=0.0,
            gpus=1,
        )
    )
    text = shell("status", **locale)
    assert text.returncode == 0, text.stderr
    assert b"berlauf-1" in text.stdout
    answer = shell("status", "--json", **locale)
    assert json.loads(answer.stdout)["runs"][0]["name"] == "überlauf"
    odd = os.fsdecode(b"\xff\xfe")
    assert shell("submit", odd, **locale).returncode == 78


def test_completion_script() -> None:
    done = shell(_QVL_ORCHESTRATE_COMPLETE="bash_source")
    assert b"complete" in done.stdout
