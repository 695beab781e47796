"""Asking Slurm for jobs: one squeue for all of them, and at most one sacct for those it forgot."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from orchestrator.backends.base import JobRef, Observation
from orchestrator.backends.slurm import commands, states
from orchestrator.backends.slurm.states import JobState
from orchestrator.errors import Unreachable

FRESH_S = 10.0
"""An answer this young is given again: many runs are asked for one after the other."""
ACCOUNTED_S = 60.0
"""The accounting is asked again so long after it failed, or did not say how a job ended."""


@dataclass(slots=True)
class _Answers:
    """What Slurm said last in this process; many backends, one for each run, ask through it."""

    asked: float = -math.inf
    """Monotonic seconds of the last answer of squeue; -inf: the next question goes to Slurm."""
    jobs: tuple[JobState, ...] = ()
    fault: str = ""
    """Why squeue gave none."""
    accounted: dict[JobRef, tuple[float, JobState | None]] = field(default_factory=dict)
    """By job: when the accounting was asked for it, and what it knew. That a job has ended stays
    true: Slurm cannot start again what it has forgotten."""
    unaccounted: float = -math.inf
    """Monotonic seconds when the accounting last failed, as it does where there is none."""


_answers = _Answers()
_asking = threading.RLock()
"""Held while Slurm is asked: who comes second finds the answer of the first."""


class Queue:
    """This user's jobs. `wall` gives seconds since the epoch, `steady` monotonic seconds."""

    def __init__(
        self,
        wall: Callable[[], float],
        steady: Callable[[], float],
        last_words: Callable[[str], str] = lambda _: "",
    ) -> None:
        """`last_words`: of the output of the job of that name."""
        self._last_words = last_words
        self._wall = wall
        self._steady = steady

    def observe(self, jobs: Sequence[JobRef]) -> dict[JobRef, Observation]:
        """What Slurm says of each job. Raises Unreachable if squeue does not answer."""
        with _asking:
            known = {_ref(state): state for state in self._jobs()}
            missing = [job for job in jobs if job not in known]
            known |= self._accounted(missing)
        return {job: self._observation(known.get(job)) for job in jobs}

    def knows(self, job: JobRef) -> bool:
        """True if Slurm, asked now, knows a job of this user with this id and this name."""
        with _asking:
            self.forget()
            return any(_ref(state) == job for state in self._jobs())

    def find(self, key: str) -> str | None:
        """The job of that name, living or ended; the newest if there are several."""
        with _asking:
            self.forget()
            jobs = self._jobs()
        named = [job.job_id for job in jobs if job.name == key]
        return max(named, key=int, default=None)

    def left_held(self) -> list[JobRef]:
        """This user's jobs that have failed and that Slurm holds."""
        with _asking:
            self.forget()
            return [_ref(state) for state in self._jobs() if states.is_left_held(state)]

    def forget(self) -> None:
        """The next question goes to Slurm."""
        _answers.asked = -math.inf

    def _observation(self, job: JobState | None) -> Observation:
        if job is None:
            return Observation(phase="unknown", detail="not known to Slurm", forgotten=True)
        seen = states.observation(job, self._wall())
        words = self._last_words(job.name) if seen.ending == "refused" else ""
        return replace(seen, detail=f"{seen.detail}: {words}") if words else seen

    def _jobs(self) -> tuple[JobState, ...]:
        if self._steady() - _answers.asked >= FRESH_S:
            self._ask()
        if _answers.fault:
            raise Unreachable(_answers.fault)
        return _answers.jobs

    def _ask(self) -> None:
        """One squeue for all jobs of this user; that it gives no answer is remembered too, lest
        each run wait for it in turn.
        """
        argv = ["squeue", "--me", "--states=all", f"--Format={states.SQUEUE_FORMAT}"]
        fault, jobs = "", None
        try:
            answer = commands.run(argv)
            jobs = states.parse_squeue(answer.out) if answer.ok else None
            if jobs is None:
                fault = f"squeue gives no answer: {answer.words}"
        except Unreachable as silent:
            fault = silent.message
        _answers.jobs, _answers.fault = jobs or (), fault
        _answers.asked = self._steady()

    def _accounted(self, jobs: Sequence[JobRef]) -> dict[JobRef, JobState]:
        """How jobs that Slurm has forgotten ended, as far as its accounting, if any, knows.

        Of a Slurm that has lost its state, the accounting goes on to say that they run.
        """
        unknown = [job for job in jobs if job.id.isdigit() and not self._is_known(job)]
        if unknown and self._steady() - _answers.unaccounted >= ACCOUNTED_S:
            self._ask_accounting(unknown)
        found = {job: _answers.accounted[job][1] for job in jobs if job in _answers.accounted}
        return {job: state for job, state in found.items() if _has_ended(state)}

    def _is_known(self, job: JobRef) -> bool:
        """True if the accounting said how the job ended, or was asked for it a moment ago."""
        asked, state = _answers.accounted.get(job, (-math.inf, None))
        return _has_ended(state) or self._steady() - asked < ACCOUNTED_S

    def _ask_accounting(self, jobs: Sequence[JobRef]) -> None:
        argv = ["sacct", "-D", "-X", "-n", "-P", f"--jobs={','.join(job.id for job in jobs)}"]
        argv += [f"--user={os.geteuid()}", "--starttime=1970-01-01"]
        argv += [f"--format={states.SACCT_FORMAT}"]
        now = self._steady()
        try:
            answer = commands.run(argv)
        except Unreachable:
            answer = None
        if answer is None or not answer.ok:
            _answers.unaccounted = now
            return
        found = {_ref(state): state for state in states.parse_sacct(answer.out)}
        _answers.accounted.update({job: (now, found.get(job)) for job in jobs})


def _ref(state: JobState) -> JobRef:
    return JobRef(state.job_id, state.name)


def _has_ended(state: JobState | None) -> TypeGuard[JobState]:
    return state is not None and states.ending_of(state) is not None
