"""A budget of time warns; it fails only where CI says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "budget.py"


def budget(seconds: str, code: int, ci: str | None) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "CI"} | (
        {} if ci is None else {"CI": ci}
    )
    return subprocess.run(
        [sys.executable, str(TOOL), seconds, sys.executable, "-c", f"raise SystemExit({code})"],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )


@pytest.mark.parametrize("ci", [None, "", "false"])
def test_over_budget_is_a_warning_for_a_person(ci: str | None) -> None:
    done = budget("0", 0, ci)
    assert done.returncode == 0
    assert "took" in done.stdout
    assert done.stderr.startswith("warning: over budget: ")


def test_over_budget_fails_where_ci_says_so() -> None:
    done = budget("0", 0, "true")
    assert done.returncode == 1
    assert done.stderr.startswith("error: over budget: ")


@pytest.mark.parametrize("ci", [None, "true"])
def test_a_failed_command_keeps_its_code_and_one_in_time_says_nothing(ci: str | None) -> None:
    assert budget("0", 5, ci).returncode == 5
    done = budget("60", 0, ci)
    assert (done.returncode, done.stderr) == (0, "")
