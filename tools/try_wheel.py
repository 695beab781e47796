"""Build the wheel, install it alone into an empty environment, and use it there.

Proves that the base install is enough to submit and look (no torch), that templates and
examples are found from the wheel, and that nothing of the checkout is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import importlib.util, json, pathlib
from orchestrator.resources import resource
for name in ("slurm/README.md", "k8s/README.md", "examples/job.yaml"):
    assert resource(name).is_file(), name
assert importlib.util.find_spec("torch") is None, "the base install pulls in torch"
import orchestrator
assert "site-packages" in orchestrator.__file__, orchestrator.__file__
"""


def run(*argv: str | Path, cwd: Path, **more: str) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(a) for a in argv], cwd=cwd, check=True, env={**env, **more})


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run(
            sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work / "dist", cwd=ROOT
        )
        (wheel,) = (work / "dist").glob("*.whl")
        venv.create(work / "venv", with_pip=True)
        python = work / "venv/bin/python"
        run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *os.environ.get("PIP_FLAGS", "").split(),
            "-c",
            ROOT / "constraints.txt",
            wheel,
            cwd=work,
        )
        run(python, "-c", SCRIPT, cwd=work)
        tool = work / "venv/bin/qvl-orchestrate"
        state = {"QVL_STATE_DIR": str(work / "state")}
        run(tool, "version", cwd=work, **state)
        run(tool, "init", "job.yaml", cwd=work, **state)
        run(tool, "status", "--json", cwd=work, **state)
    print("wheel: built, installed alone and used")
    return 0


if __name__ == "__main__":
    sys.exit(main())
