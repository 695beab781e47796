"""Every command with a stdout that is full, closed or left by its reader: no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main as entry
from tests.unit.cli.shells import RUN, Built, Shell

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    "--help", "--version", "init /dev/null/job.yaml", "submit nowhere.yaml", "data --help",
    "status", "status --json", "status -v", "logs RUN", "logs RUN --json", "events RUN",
    "metrics RUN", "metrics RUN --csv", "checkpoints RUN", "checkpoints verify RUN",
    "checkpoints prune RUN --dry-run", "preempt RUN", "cancel RUN", "resume RUN --from 99",
    "repair RUN", "rm RUN", "adopt nowhere", "controller unit", "nodes list",
    "export RUN /dev/null/x",
    "merge RUN /dev/null/x", "generate RUN - hello", "verify RUN", "template show", "template diff",
    "drill nowhere.yaml", "doctor --backend local --all", "schema", "version", "version --json",
]  # fmt: skip
DRIVER = """
import json, os, sys
from orchestrator.cli.main import main
how, commands = json.loads(sys.argv[1])
answers = []
for argv in commands:
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 64)
        if how == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        elif how == "left":
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        else:
            os.close({"closed": 1, "closed stderr": 2, "closed stdin": 0}[how])
        os.execv(sys.executable, [sys.executable, "-m", "orchestrator.cli", *argv])
    answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stderr.write("\\n" + json.dumps(answers))
"""


def test_no_command_is_left_out() -> None:
    named = {line.split()[0] for line in COMMANDS} - {"--help", "--version"}
    assert named == set(entry.COMMANDS)


CASES = [(how, b) for how in ("full", "left", "closed", "closed stderr", "closed stdin")
         for b in (True, False)]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: str(CASES[n]))
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_no_stream_ends_a_command_with_a_traceback(run: Built, number: int, every: bool) -> None:
    """Each in an interpreter of its own, whose way out counts too; warnings are errors there.

    The first case meets every command, the others one command in ten, each other ones.
    """
    how, buffered = CASES[number]
    run.held()
    run.claim(1)
    run.print(1, 0, (1.0, "a line"))
    run.metrics(1, range(1, 4))
    run.checkpoint(1, 5)
    chosen = COMMANDS if every or number == 0 else ["--help", *COMMANDS[number :: len(CASES)]]
    commands = [line.replace("RUN", RUN).split() for line in chosen]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([how, commands])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "" if buffered else "1",
            "PYTHONWARNINGS": "error",
            "LC_ALL": "C",
            "NO_COLOR": "1",
            "COLUMNS": "40",
        },
        check=True,
    )
    for words in ("Traceback", "Exception ignored", "error: internal error", "Warning"):
        assert words not in done.stdout + done.stderr
    codes = dict(zip(chosen, json.loads(done.stderr.splitlines()[-1]), strict=True))
    assert {c for c in codes.values() if c not in (0, 2, 69, 73, 78, 141)} == set(), codes
    lost = {"full": 69, "left": 141}.get(how, 0)
    assert codes["--help"] == lost
    if how == "full" and buffered:
        assert codes["status --json"] == codes["schema"] == codes["logs RUN"] == 69
        assert "error: the output cannot be written: No space left on device" in done.stderr


def test_version_as_an_option(shell: Shell) -> None:
    assert shell("--version").startswith("qvl-orchestrate ")
