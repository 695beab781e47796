"""What a command imports: nothing heavy before it is needed, so that it answers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEVER = frozenset({"torch", "transformers", "deepspeed", "peft", "bitsandbytes", "trainer"})
HEAVY = NEVER | {"pydantic", "jinja2", "yaml", "fsspec", "submitit", "rich", "blake3", "asyncio"}

# Blake3 belongs to storage, pydantic and yaml to job files, rich to a table that is drawn.
STORAGE = frozenset({"blake3"})
JOB_FILE = frozenset({"pydantic", "yaml", "asyncio"})
# What of HEAVY a command may import.
ALLOWED: dict[str, frozenset[str]] = {
    "--help": frozenset(),
    "version --json": frozenset(),
    "submit --help": frozenset(),
    "resume --help": frozenset(),
    "logs --help": frozenset(),
    "controller --help": frozenset(),
    "template --help": frozenset(),
    "template check --help": frozenset(),
    "doctor --help": frozenset(),
    "status": STORAGE,
    "status --json": STORAGE,
    "controller once": STORAGE,
    "cancel nobody": STORAGE,
    "rm nobody --yes": STORAGE,
    "submit nowhere.yaml": STORAGE | JOB_FILE,
    "schema": JOB_FILE,
}
_PROBE = """
import json, sys
from orchestrator.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
top = sorted({name.partition(".")[0] for name in sys.modules})
sys.stderr.write("\\n" + json.dumps({"code": code, "modules": top}))
"""


def imported(argv: list[str], state: Path) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after the command."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *argv],
        cwd=state,
        env={**os.environ, "QVL_STATE_DIR": str(state / "state"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1])["modules"])


@pytest.mark.parametrize("command", ALLOWED)
def test_nothing_heavy_is_imported(command: str, tmp_path: Path) -> None:
    found = imported(command.split(), tmp_path) & HEAVY
    assert found <= ALLOWED[command], f"{command} imports {sorted(found - ALLOWED[command])}"
