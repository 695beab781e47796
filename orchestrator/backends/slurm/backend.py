"""The Slurm backend's five verbs. Ids are Slurm's job ids; they survive a requeue."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.backends.base import Capabilities, Observation, Submission
from orchestrator.backends.slurm import commands
from orchestrator.backends.slurm.queue import Queue
from orchestrator.backends.slurm.values import template_values
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import Unreachable, UserError

TEMPLATE = "train.sbatch.j2"
OUTPUT = "agent.log"
"""Where the templates let a job write, in its own folder."""
TAIL_BYTES = 4096
CAPABILITIES = Capabilities(
    requeues_itself=True,
    keeps_id=True,
    delivers_usr1=True,
    multi_node=True,
    excludes_nodes=True,
    keeps_answers=True,
    poll_s=30.0,
)
_ENDED = ("invalid job id", "already completing or completed", "already finished")
"""Words of scontrol and scancel for a job that has ended (lower case)."""


def create(state_dir: Path) -> SlurmBackend:
    """The backend whose files live below `state_dir`, which nodes must see too."""
    return SlurmBackend(state_dir)


class SlurmBackend:
    """Jobs are batch jobs of the cluster that Slurm's clients on PATH talk to."""

    def __init__(self, state_dir: Path) -> None:
        self._jobs = state_dir / "jobs"
        self._queue = Queue(time.time, time.monotonic, self._last_words)

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def prepare(self, job: ResolvedJob, spec: TrainSpec) -> Submission:
        from orchestrator.templates.find import find_for
        from orchestrator.templates.render import render

        template = find_for("slurm", TEMPLATE, job.slurm)
        rendered = render(template, template_values(job, spec))
        return Submission(
            number=spec.submission,
            spec=spec,
            text=rendered.text,
            template=rendered.template_id,
            template_sha256=rendered.sha256,
        )

    def submit(self, submission: Submission, key: str) -> str:
        folder = self._jobs / key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            known = self._queue.find(key)
            return known or self._start(folder, submission.text)

    def _start(self, folder: Path, text: str) -> str:
        from orchestrator.backends.slurm.executor import TemplateExecutor

        try:
            executor = TemplateExecutor(folder, text=text)
        except RuntimeError:
            raise UserError(
                "srun is not on PATH", hint="submit from a login node of the Slurm cluster"
            ) from None
        identifier = executor.start()
        self._queue.forget()
        return identifier

    def observe(self, ids: Sequence[str]) -> Mapping[str, Observation]:
        return self._queue.observe(ids)

    def _last_words(self, key: str) -> str:
        """The last line that the job of that name wrote; empty where it cannot be read."""
        try:
            with (self._jobs / key / OUTPUT).open("rb") as file:
                file.seek(-min(TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def notify(self, backend_id: str, signal: str, rank: int | None) -> None:
        if rank is not None:
            raise UserError(
                "Slurm delivers a signal to all processes of a job", hint="leave out --rank"
            )
        name = signal.removeprefix("SIG")
        answer = commands.run(["scancel", f"--signal={name}", backend_id])
        if not answer.ok:
            raise UserError(f"job {backend_id} takes no signal: {answer.words}")

    def cancel(self, backend_id: str) -> None:
        """First the permission to start again is taken, so that nothing can undo the cancel."""
        self._queue.forget()
        for argv in (
            ["scontrol", "update", f"jobid={backend_id}", "requeue=0"],
            ["scancel", backend_id],
        ):
            answer = commands.run(argv)
            if not answer.ok and not _has_ended(answer):
                raise Unreachable(f"{argv[0]}: {answer.words}")


def _has_ended(answer: commands.Answer) -> bool:
    said = answer.err.lower()
    return any(words in said for words in _ENDED)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
