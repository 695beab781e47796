"""The Slurm backend's five verbs. Ids are Slurm's job ids; they survive a requeue."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from orchestrator.backends.base import Capabilities, JobRef, Observation, Submission
from orchestrator.backends.slurm import commands
from orchestrator.backends.slurm.queue import Queue
from orchestrator.backends.slurm.values import template_values
from orchestrator.contract.resolved import ResolvedJob
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import UserError

TEMPLATE = "train.sbatch.j2"
OUTPUT = "agent.log"
"""Where the templates let a job write, in its own folder."""
TAIL_BYTES = 4096
CAPABILITIES = Capabilities(
    requeues_itself=True,
    excludes_nodes=True,
    keeps_answers=True,
    poll_s=30.0,
)


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

    def submit(self, submission: Submission, key: str) -> JobRef:
        folder = self._jobs / key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            known = self._queue.find(key) or self._start(folder, key, submission.text)
        if submission.number > 1:
            self._clear(submission.spec)
        return JobRef(known, key)

    def _start(self, folder: Path, key: str, text: str) -> str:
        from orchestrator.backends.slurm.executor import TemplateExecutor

        try:
            executor = TemplateExecutor(folder, text=text, name=key)
        except RuntimeError:
            raise UserError(
                "srun is not on PATH", hint="submit from a login node of the Slurm cluster"
            ) from None
        identifier = executor.start()
        self._queue.forget()
        return identifier

    def _clear(self, spec: TrainSpec) -> None:
        """End jobs of earlier submissions that Slurm holds: released, they would start for
        nothing.
        """
        earlier = {replace(spec, submission=n).key for n in range(1, spec.submission)}
        for job in self._queue.left_held():
            if job.key in earlier:
                commands.end_job(job.id)

    def observe(self, jobs: Sequence[JobRef]) -> Mapping[JobRef, Observation]:
        return self._queue.observe(jobs)

    def _last_words(self, key: str) -> str:
        """The last line that the job of that name wrote; empty where it cannot be read."""
        try:
            with (self._jobs / key / OUTPUT).open("rb") as file:
                file.seek(-min(TAIL_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def notify(self, job: JobRef, signal: str, rank: int | None) -> None:
        if rank is not None:
            raise UserError(
                "Slurm delivers a signal to all processes of a job", hint="leave out --rank"
            )
        if not self._queue.knows(job):
            raise UserError(f"Slurm knows no job {job.id} of yours that is called {job.key}")
        name = signal.removeprefix("SIG")
        answer = commands.run(["scancel", f"--signal={name}", job.id])
        if not answer.ok:
            raise UserError(f"job {job.id} takes no signal: {answer.words}")

    def cancel(self, job: JobRef) -> None:
        if self._queue.knows(job):
            commands.end_job(job.id)
        self._queue.forget()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
