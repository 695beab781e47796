"""The local backend's five verbs. Ids are `<pid>-<start ticks>-<boot>` of the agent."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal as signals
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.agent.identity import pid_of, process_id, send_signal
from orchestrator.backends.base import Capabilities, JobRef, Observation, Submission
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.records import ending_by_code
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import InternalError, UserError

CAPABILITIES = Capabilities(
    requeues_itself=False,
    free_to_ask=True,
    backoff_base_s=2.0,
)


def create(state_dir: Path) -> LocalBackend:
    """The backend whose files live below `state_dir`."""
    return LocalBackend(state_dir)


class LocalBackend:
    """Jobs are agents of this machine, started detached from the submitter."""

    def __init__(self, state_dir: Path) -> None:
        self._jobs = state_dir / "jobs"
        self._agents = state_dir / "agents"
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def prepare(self, job: ResolvedJob, spec: TrainSpec) -> Submission:
        if job.resources.nodes != 1:
            raise UserError("the local backend has one node", hint="set resources.nodes: 1")
        argv = self._argv(spec, Path("SPEC_FILE"))
        text = f"{shlex.join(argv)}\n# SPEC_FILE:\n{pretty(to_json(spec)).decode()}"
        return Submission(number=spec.submission, spec=spec, text=text)

    def submit(self, submission: Submission, key: str) -> JobRef:
        folder = self._jobs / key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._agents.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            return JobRef(self._find(folder) or self._start(folder, submission.spec), key)

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        self._children = [c for c in self._children if c.poll() is None]
        return {job: self._observe(job.id) for job in jobs}

    def notify(self, job: JobRef, signal: str, rank: int | None) -> None:
        number = signals.Signals[signal]
        if rank is None:
            if not send_signal(job.id, number):
                raise UserError(f"job {job.id} has ended")
        elif not send_signal(self._rank(job.id, rank), number):
            raise UserError(f"job {job.id} has no rank {rank}")

    def cancel(self, job: JobRef) -> None:
        send_signal(job.id, signals.SIGTERM)

    def _argv(self, spec: TrainSpec, spec_file: Path) -> list[str]:
        return [
            spec.python,
            "-m",
            "orchestrator.agent",
            str(spec_file),
            "--agents-dir",
            str(self._agents),
        ]

    def _start(self, folder: Path, spec: TrainSpec) -> str:
        from orchestrator.backends.local.executor import AgentExecutor

        spec_file = folder / "spec.json"
        spec_file.write_bytes(pretty(to_json(spec)))
        executor = AgentExecutor(folder, argv=self._argv(spec, spec_file), log=folder / "agent.log")
        try:
            process = executor.start()
        except OSError as fault:
            raise UserError(
                f"{spec.python} cannot be started: {fault.strerror}",
                hint="`python:` in job.yaml names the interpreter of the run",
            ) from None
        self._children.append(process)
        identifier = process_id(process.pid, ended=True)
        if identifier is None:
            raise InternalError(f"the agent (pid {process.pid}) was reaped by somebody else")
        _write_whole(folder / "id", identifier)
        return identifier

    def _find(self, folder: Path) -> str | None:
        """The job of an earlier, interrupted submission under the same key."""
        with suppress(FileNotFoundError):
            return (folder / "id").read_text().strip()
        spec_file = str(folder / "spec.json")
        for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()):
            if spec_file in _command_line(pid) and "orchestrator.agent" in _command_line(pid):
                identifier = process_id(pid)
                if identifier is not None:
                    _write_whole(folder / "id", identifier)
                    return identifier
        return None

    def _observe(self, identifier: str) -> Observation:
        said = self._state(identifier)
        if pid_of(identifier) is None:
            return Observation(phase="gone", ending=ending_by_code(said.get("code")))
        state = said.get("state")
        return Observation(phase="pending" if state == "queued" else "running")

    def _state(self, identifier: str) -> dict[str, Any]:
        try:
            state = json.loads((self._agents / f"{identifier}.json").read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _rank(self, identifier: str, rank: int) -> str:
        ranks = self._state(identifier).get("ranks") or []
        return str(ranks[rank]) if 0 <= rank < len(ranks) else ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write_whole(path: Path, text: str) -> None:
    tmp = path.with_suffix(".tmp")
    tmp.write_text(text)
    tmp.replace(path)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
