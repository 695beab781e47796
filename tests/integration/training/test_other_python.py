"""Real Q-LoRA under another Python than the one that tests: QVL_TEST_PYTHON, an interpreter.

See tools/debian12_python.sh.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.run_directory import attempts
from tests.harness.training import Disturbance, TrainingBench, TrainingRun, assert_same_training

OTHER = os.environ.get("QVL_TEST_PYTHON", "")

pytestmark = [
    pytest.mark.training,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not OTHER, reason="QVL_TEST_PYTHON names no other interpreter"),
]

COURSE = [
    Disturbance("boundary", 6, "SIGUSR1", [1], 75, 6),
    Disturbance("micro", 9, "SIGTERM", "agent", 75, 9, micro=1),
    Disturbance("boundary", 13, "SIGTERM", [0], 75, 13),
]
WRITTEN_BY = [OTHER, OTHER, sys.executable, OTHER]
"""The interpreter of each attempt: each reads what the one before has written."""


def test_each_python_goes_on_from_what_the_other_wrote(
    bench: TrainingBench, straight: TrainingRun
) -> None:
    chosen = bench.folder / "chosen"
    python = bench.folder / "python"
    python.write_text(f'#!/bin/sh\nexec "$(cat {chosen})" "$@"\n')
    python.chmod(0o755)
    use(chosen, WRITTEN_BY[0])
    run = bench.disturbed(bench.job(python=str(python)), COURSE)
    for attempt, interpreter in enumerate(WRITTEN_BY[1:], 1):
        run.follow(lambda s, n=attempt: s.row["attempt"] >= n)
        wait_verdict(run, attempt)
        run.wait_gone()
        use(chosen, interpreter)
    assert run.finish().state == "SUCCEEDED", run.logs()
    assert run.verdicts() == [75, 75, 75, 0]
    assert_same_training(run, straight)


def use(chosen: Path, interpreter: str) -> None:
    """Of the next attempt."""
    chosen.write_text(interpreter)


def wait_verdict(run: TrainingRun, attempt: int) -> None:
    """Without a pass of the controller, which would start the next attempt."""
    end = time.monotonic() + 300
    while not attempts.read_verdicts(run.storage, attempt):
        assert time.monotonic() < end, run.logs()
        time.sleep(0.2)


def test_what_files_hold_is_the_same_there() -> None:
    """The unit tests of the files, by the other interpreter."""
    argv = [OTHER, "-m", "pytest", "tests/unit/trainer/test_pickles.py", "-p", "no:cacheprovider"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
