"""One error tree; each class knows its exit code, and every message can carry a hint.

    QvlError
    ├── UserError            78  the job file, the site file or the arguments are wrong
    │   ├── JobFileError     78  job.yaml, with line and path
    │   ├── DataFault        78  the training data
    │   ├── NewerVersion     78  a stored document that a newer version of us has written
    │   └── UsageError        2  the command line itself
    ├── NoSuchRun             3  the run is not known
    ├── Unreachable          69  a backend or a storage does not answer
    │   ├── Full             69  a backend takes no more jobs of this user for now
    │   └── StorageError     69  the storage answered with an error
    ├── CheckpointError      73  a checkpoint is damaged, missing or refused
    │   └── RecordDamaged    73  a record of the run directory is not what was written
    │       └── LogDamaged   73  a record of the run's log cannot be read
    ├── RegistryDamaged       73  the index of runs cannot be read; it can be rebuilt
    ├── ContractRefused      78  the resume contract does not hold (job exit code)
    ├── NotOwner             79  this attempt has been replaced
    ├── PeersMissing          1  other nodes of the job did not come (job exit code)
    └── InternalError         1  an internal error

Exit codes up to 78 are those of the command line (sysexits where one fits);
79 belongs to the processes of a job (`contract.codes`).
"""

from __future__ import annotations

from typing import ClassVar


class QvlError(Exception):
    """Base of every error that is shown to a person: what, where, and what to do.

    `hint` is one sentence saying what to do next, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UserError(QvlError):
    """The job file, the site file or a setting is wrong."""

    exit_code = 78


class JobFileError(UserError):
    """A fault of a job.yaml, with the place it was found at."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = ":".join(str(p) for p in (file, line) if p is not None)
        head = " ".join(p for p in (where, path) if p)
        super().__init__(f"{head}: {message}" if head else message, hint=hint)
        self.file = file
        self.line = line
        self.path = path


class DataFault(UserError):
    """The training data cannot be used: an index file, or a sample of it."""


class NewerVersion(UserError):
    """A stored document that a newer version of qvl-orchestrate has written; not damage."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="use the version of qvl-orchestrate that wrote it")


class UsageError(QvlError):
    """The command line cannot be understood."""

    exit_code = 2


class NoSuchRun(QvlError):
    """No run of that id or name is known."""

    exit_code = 3


class Unreachable(QvlError):
    """A backend or a storage does not answer now; trying again later may help."""

    exit_code = 69


class Full(Unreachable):
    """The backend takes no more jobs of this user for now (a limit of its own on submitted
    jobs); the same submission may be handed over again later.
    """


class StorageError(Unreachable):
    """The storage answered with an error (permission, no space, input/output)."""


class CheckpointError(QvlError):
    """A checkpoint is damaged, missing or refused."""

    exit_code = 73


class RecordDamaged(CheckpointError):
    """A record of the run directory is not what was written."""


class LogDamaged(RecordDamaged):
    """A record of the run's log cannot be read; a writer never goes past it."""


class RegistryDamaged(QvlError):
    """The index of this user's runs is damaged; nothing but the index is lost."""

    exit_code = 73


class ContractRefused(QvlError):
    """What would be resumed differs from what was saved, and no flag allowed it."""

    exit_code = 78


class NotOwner(QvlError):
    """A higher attempt has fenced this one, or its slot is taken: change nothing, leave."""

    exit_code = 79


class PeersMissing(QvlError):
    """Not every node of a job got as far as its agent, so that no attempt was claimed."""


class InternalError(QvlError):
    """A fault of qvl-orchestrate itself."""
