"""What the command line imports: nothing that costs time and is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"torch", "transformers", "peft", "deepspeed", "bitsandbytes", "accelerate", "numpy"}
HEAVY = TRAINING | {
    "pydantic", "jinja2", "rich", "fsspec", "submitit", "yaml", "asyncio", "multiprocessing",
    "importlib.metadata", "urllib.request", "http.client", "unittest", "trainer",
}  # fmt: skip
CONTROLLER = {"orchestrator.controller", "orchestrator.backends", "orchestrator.storage", "sqlite3"}
_CODE = """
import sys
from orchestrator.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.write("\\nMODULES " + " ".join(sys.modules))
sys.exit(code)
"""


def imported(tmp_path: Path, *argv: str, code: int = 0) -> set[str]:
    """Every module that a command imports, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "QVL_STATE_DIR": str(tmp_path / "state")},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.rsplit("MODULES ", 1)[1].split())


@pytest.mark.parametrize(
    "argv", [["--help"], ["submit", "--help"], ["status", "--help"], ["resume", "--help"]]
)
def test_help_imports_next_to_nothing(tmp_path: Path, argv: list[str]) -> None:
    assert imported(tmp_path, *argv).isdisjoint(HEAVY | CONTROLLER)


@pytest.mark.parametrize(
    "argv", [["status"], ["status", "--json"], ["status", "--all", "-v"], ["controller", "once"]]
)
def test_looking_imports_nothing_heavy(tmp_path: Path, argv: list[str]) -> None:
    assert imported(tmp_path, *argv).isdisjoint(HEAVY)


def test_an_error_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported(tmp_path, "logs", "nothing", code=3).isdisjoint(HEAVY)


@pytest.mark.parametrize("argv", [["schema"], ["init", "/dev/null", "--force"], ["version"]])
def test_no_command_imports_the_training_packages(tmp_path: Path, argv: list[str]) -> None:
    assert imported(tmp_path, *argv).isdisjoint(TRAINING | {"rich", "fsspec", "submitit"})


def test_a_help_page_imports_no_other_command(tmp_path: Path) -> None:
    found = imported(tmp_path, "--help")
    assert {m for m in found if m.startswith("orchestrator.cli.")} == {"orchestrator.cli.main"}
