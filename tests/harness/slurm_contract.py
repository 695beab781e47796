"""What the Slurm backend relies upon, played on the real cluster and on the fake one alike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.backends.base import JobRef, Observation, Submission
from orchestrator.backends.slurm.backend import SlurmBackend
from orchestrator.contract.spec import TrainSpec
from orchestrator.errors import Unreachable, UserError

_numbers = itertools.count()
BATCH = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output=agent.log
#SBATCH --open-mode=append
#SBATCH --requeue
trap : TERM USR1
{body}
"""
TASK = """
srun --ntasks=1 bash -c 'trap "echo noticed; exit 75" TERM; for i in {1..300}; do sleep 0.1; done' &
while kill -0 $! 2>/dev/null; do wait $!; done
wait $!; code=$?
[ "$code" = 75 ] && scontrol requeue incomplete "$SLURM_JOB_ID"
exit $code
"""


class SlurmContract:
    """Tests for both; a subclass gives the fixtures `backend` (a SlurmBackend whose queue is
    asked anew each time) and `silence` (makes the daemon unreachable until it is called again).
    """

    def submit(
        self, backend: SlurmBackend, body: str, key: str | None = None, *, name: str = ""
    ) -> tuple[JobRef, str]:
        """A job with this body, and its key."""
        key = key or f"contract-{time.time_ns()}-{next(_numbers)}"
        text = BATCH.format(name=name or key, body=body)
        spec = TrainSpec(
            run_id=key,
            storage="/nowhere",
            submission=1,
            backend="slurm",
            nodes=1,
            gpus_per_node=1,
            grace_s=5.0,
            python="python3",
        )
        submission = Submission(number=1, spec=spec, text=text)
        return backend.submit(submission, key.replace("\n", " ")), key

    def until(
        self, backend: SlurmBackend, job: JobRef, wanted: Callable[[Observation], bool]
    ) -> Observation:
        end = time.monotonic() + 60.0
        while not wanted(seen := backend.observe([job])[job]):
            assert time.monotonic() < end, seen
            time.sleep(0.1)
        return seen

    @pytest.mark.parametrize(
        ("body", "ending"),
        [("exit 0", "completed"), ("exit 3", "failed"), ("kill -9 $$", "killed")],
    )
    def test_how_a_job_ended(self, backend: SlurmBackend, body: str, ending: str) -> None:
        job, _ = self.submit(backend, body)
        seen = self.until(backend, job, lambda o: o.phase == "gone")
        assert (seen.ending, seen.restarts) == (ending, 0)

    def test_one_key_is_one_job_while_it_lives_and_after(self, backend: SlurmBackend) -> None:
        job, key = self.submit(backend, "sleep 1")
        assert self.submit(backend, "sleep 1", key)[0] == job
        self.until(backend, job, lambda o: o.phase == "gone")
        assert self.submit(backend, "sleep 1", key)[0] == job

    def test_a_job_is_known_whatever_its_batch_file_calls_it(self, backend: SlurmBackend) -> None:
        """A site's template may have a name of its own."""
        job, key = self.submit(backend, "sleep 1", name="of-the-site")
        assert backend.observe([job])[job].phase in ("pending", "running")
        assert self.submit(backend, "sleep 1", key, name="of-the-site")[0] == job
        backend.cancel(job)
        assert self.until(backend, job, lambda o: o.phase == "gone").ending == "cancelled"

    def test_a_requeue_that_the_job_asks_for_keeps_its_id(self, backend: SlurmBackend) -> None:
        job, _ = self.submit(backend, TASK)
        self.until(backend, job, lambda o: o.phase == "running")
        time.sleep(1.0)
        backend.notify(job, "SIGTERM", None)
        self.until(backend, job, lambda o: o.restarts == 1)
        self.until(backend, job, lambda o: o.phase == "running" and o.restarts == 1)
        backend.cancel(job)

    def test_a_cancel_is_not_undone_by_a_requeue(self, backend: SlurmBackend) -> None:
        job, _ = self.submit(backend, TASK)
        self.until(backend, job, lambda o: o.phase == "running")
        time.sleep(1.0)
        backend.cancel(job)
        seen = self.until(backend, job, lambda o: o.phase == "gone")
        assert (seen.ending, seen.restarts) == ("cancelled", 0)
        backend.cancel(job)
        with pytest.raises(UserError):
            backend.notify(job, "SIGTERM", None)

    def test_a_waiting_job_is_cancelled(self, backend: SlurmBackend, busy: object) -> None:
        job, _ = self.submit(backend, "sleep 1")
        assert backend.observe([job])[job].phase == "pending"
        backend.cancel(job)
        assert self.until(backend, job, lambda o: o.phase == "gone").ending == "cancelled"

    def test_an_unknown_job_is_forgotten_and_not_gone(self, backend: SlurmBackend) -> None:
        job, _ = self.submit(backend, "sleep 1")
        strangers = [JobRef("4000000", job.key), JobRef(job.id, "another-1")]
        found = backend.observe([job, *strangers])
        assert found[job].phase in ("pending", "running")
        for other in strangers:
            assert (found[other].phase, found[other].forgotten) == ("unknown", True)

    def test_a_job_of_the_same_id_is_another_one(self, backend: SlurmBackend) -> None:
        """Slurm counts anew once it has lost its state."""
        job, _ = self.submit(backend, "sleep 2")
        other = JobRef(job.id, "another-1")
        backend.cancel(other)
        with pytest.raises(UserError, match="knows no job"):
            backend.notify(other, "SIGKILL", None)
        assert self.until(backend, job, lambda o: o.phase == "gone").ending == "completed"

    def test_a_silent_slurm_is_unreachable(
        self, backend: SlurmBackend, silence: Callable[[], None]
    ) -> None:
        job, _ = self.submit(backend, "sleep 1")
        silence()
        with pytest.raises(Unreachable):
            backend.observe([job])

    def test_what_slurm_refuses_is_the_user_s_to_mend(
        self, backend: SlurmBackend, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="invalid partition"):
            self.submit(backend, "exit 0", "refused\n#SBATCH --partition=nowhere")
