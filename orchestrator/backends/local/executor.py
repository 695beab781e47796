"""submitit's local executor, starting our agent instead of submitit's own controller.

Of submitit its submission path is used (folders, ids, job objects). Its pickle is written
because the base class does, and never read; its controller, time-out, restart loop and
`Job.cancel()` never run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob


class AgentJob(LocalJob[None]):
    """A submitit job whose process is an agent: to cancel it is to send it a notice."""

    def cancel(self, check: bool = True) -> None:  # noqa: ARG002
        self._interrupt()

    def _interrupt(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)


class AgentExecutor(LocalExecutor):
    """Starts one agent, detached: own session, no terminal, output to `log`."""

    job_class = AgentJob

    def __init__(self, folder: Path, *, argv: Sequence[str], log: Path) -> None:
        super().__init__(folder=folder)
        self._argv = list(argv)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Submit; returns the agent's process, which the caller reaps while it lives itself."""
        self.submit(_nothing)
        assert self._process is not None, "submitit did not call _submit_command"
        return self._process

    def _submit_command(self, command: str) -> LocalJob[Any]:  # noqa: ARG002
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        finally:
            os.close(fd)
        return AgentJob(folder=self.folder, job_id=str(self._process.pid), process=self._process)


def _nothing() -> None:
    """What submitit pickles."""


def _environment() -> dict[str, Any]:
    """The submitter's environment, with the packages of this checkout importable from `/`."""
    root = str(Path(__file__).resolve().parents[3])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *([known] if known else [])])}
