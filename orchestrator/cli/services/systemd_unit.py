"""The text of a systemd user unit that runs `controller run`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.contract.env import STATE_DIR

PASSED_ON = ("PATH", "PYTHONPATH", "SLURM_CONF", "KUBECONFIG")
"""Variables by which the schedulers' commands and settings are found. No secrets: whoever may
read the unit reads them."""
STOP_S = 30
"""A pass that is under way may end; runs go on without a controller in any case."""


def unit_text(python: str, state_dir: Path, environ: Mapping[str, str], interval: float) -> str:
    """A unit for this interpreter, state folder and environment; `interval` in seconds."""
    settings = {STATE_DIR: str(state_dir)}
    settings |= {name: environ[name] for name in PASSED_ON if environ.get(name)}
    variables = [f"Environment={_quoted(f'{name}={value}')}" for name, value in settings.items()]
    command = [python, "-m", "orchestrator.cli", "controller", "run", "--interval", f"{interval:g}"]
    lines = [
        "[Unit]",
        "Description=qvl-orchestrate: looks after this user's training runs",
        "",
        "[Service]",
        "Type=exec",
        *variables,
        "ExecStart=" + " ".join(_quoted(word).replace("$", "$$") for word in command),
        "Restart=always",
        "RestartSec=15",
        f"TimeoutStopSec={STOP_S}",
        "KillSignal=SIGTERM",
        # Controllers and jobs of the local backend that it started live on.
        "KillMode=process",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """One word of a unit file: specifiers (%) doubled, quoted as systemd reads it."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{text}"'
