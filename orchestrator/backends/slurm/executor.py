"""submitit's Slurm executor with a batch text of ours.

Of submitit its submission path is used (folders, ids, job objects). Its pickle is written
because the base class does, and never read; its batch text, signals, requeue and status
polling never run.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from orchestrator.backends.slurm import commands
from orchestrator.errors import Full, Unreachable, UserError


class TemplateExecutor(SlurmExecutor):
    """Submits `text` as it is, with `folder` as the job's working directory.

    `name`: by which the job is known again, whatever the text calls it.
    """

    def __init__(self, folder: Path, *, text: str, name: str) -> None:
        super().__init__(folder=folder)
        self._text = text
        self._name = name

    def start(self) -> str:
        """Submit; returns Slurm's id of the job.

        Raises UserError with sbatch's own words if it refuses, Unreachable if nobody answers.
        """
        try:
            with redirect_stderr(io.StringIO()):
                return str(self.submit(_nothing).job_id)
        except (FailedJobError, FailedSubmissionError) as fault:
            words = str(fault).strip() or "sbatch failed without a word"
            if commands.is_silent(words):
                raise Unreachable(f"sbatch: {words.splitlines()[-1]}") from None
            if (limit := commands.full_words(words)) is not None:
                raise Full(
                    f"Slurm takes no more jobs of yours for now: {limit}",
                    hint="it is tried again; `squeue --me` shows what counts",
                ) from None
            raise UserError(
                f"Slurm refuses the job: {words}",
                hint="`qvl-orchestrate submit job.yaml --dry-run` prints such a batch file",
            ) from None

    def _make_submission_file_text(self, command: str, uid: str) -> str:  # noqa: ARG002
        return self._text

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        drop = [word for name in commands.option_names(os.environ) for word in ("-u", name)]
        limit = f"{commands.LIMIT_S:.0f}"
        known_by = [f"--chdir={self.folder}", f"--job-name={self._name}"]
        sbatch = ["sbatch", *known_by, str(submission_file_path)]
        return ["timeout", limit, "env", *drop, *sbatch]


def _nothing() -> None:
    """What submitit pickles."""
