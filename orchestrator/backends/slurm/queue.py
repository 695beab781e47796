"""Asking Slurm for jobs: one squeue for all of them, and at most one sacct for those it forgot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator.backends.base import Observation
from orchestrator.backends.slurm import commands, states
from orchestrator.backends.slurm.states import JobState
from orchestrator.errors import Unreachable

FRESH_S = 10.0
"""An answer this young is given again: many runs are asked for one after the other."""
_shared: dict[str, tuple[float, tuple[JobState, ...]]] = {}
"""The newest answer of squeue in this process."""


class Queue:
    """This user's jobs. `wall` gives seconds since the epoch, `steady` monotonic seconds."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall = wall
        self._steady = steady

    def observe(self, ids: Sequence[str]) -> dict[str, Observation]:
        """What Slurm says of each job. Raises Unreachable if squeue does not answer."""
        known = {job.job_id: job for job in self._jobs()}
        missing = [i for i in ids if i not in known]
        known |= self._accounted(missing)
        return {i: self._observation(known, i) for i in ids}

    def find(self, key: str) -> str | None:
        """The job of that name, living or ended; the newest if there are several."""
        self.forget()
        named = [job.job_id for job in self._jobs() if job.name == key]
        return max(named, key=int, default=None)

    def forget(self) -> None:
        """The next question goes to Slurm."""
        _shared.clear()

    def _observation(self, known: Mapping[str, JobState], job_id: str) -> Observation:
        job = known.get(job_id)
        if job is None:
            return Observation(phase="unknown", detail="not known to Slurm", forgotten=True)
        return states.observation(job, self._wall())

    def _jobs(self) -> tuple[JobState, ...]:
        cached = _shared.get("squeue")
        if cached is not None and self._steady() - cached[0] < FRESH_S:
            return cached[1]
        argv = ["squeue", "--me", "--states=all", f"--Format={states.SQUEUE_FORMAT}"]
        answer = commands.run(argv)
        jobs = states.parse_squeue(answer.out) if answer.ok else None
        if jobs is None:
            raise Unreachable(f"squeue gives no answer: {answer.words}")
        _shared["squeue"] = (self._steady(), jobs)
        return jobs

    def _accounted(self, ids: Sequence[str]) -> dict[str, JobState]:
        """What the accounting, if there is one, says of jobs that Slurm has forgotten."""
        numbers = [i for i in ids if i.isdigit()]
        if not numbers:
            return {}
        argv = ["sacct", "-D", "-X", "-n", "-P", f"--jobs={','.join(numbers)}"]
        argv += ["--starttime=1970-01-01", f"--format={states.SACCT_FORMAT}"]
        try:
            answer = commands.run(argv)
        except Unreachable:
            return {}
        return {j.job_id: j for j in states.parse_sacct(answer.out)} if answer.ok else {}
