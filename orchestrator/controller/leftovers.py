"""What half-written saves leave in a run directory, removed when the run has ended."""

from __future__ import annotations

from orchestrator.contract import layout
from orchestrator.controller.run import Run
from orchestrator.errors import StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import LogView
from orchestrator.storage.protocol import HasUploads

YOUNG_S = 60.0
"""Outside of the attempts, which have ended, somebody may be writing for so long."""


def sweep(run: Run, view: LogView) -> None:
    """Remove files that no record names, and unfinished ones, of a run whose jobs are gone.

    What cannot be removed (a pod's files may be another user's) is told of and left to `rm`.
    Nothing goes while a record is unreadable: it may name any of them.
    """
    if view.unreadable:
        return
    try:
        for directory in checkpoints.leftovers(run.storage, view, view.fence() + 1):
            checkpoints.remove_files(run.storage, directory)
        if isinstance(run.storage, HasUploads):
            _abort(run, run.storage)
    except StorageError as fault:
        run.event("warning", {"message": f"not all that saves left was removed: {fault.message}"})


def _abort(run: Run, storage: HasUploads) -> None:
    old = run.clock.now() - YOUNG_S
    for upload in list(storage.uploads()):
        if upload.path.startswith(layout.ATTEMPTS) or upload.begun < old:
            storage.abort_upload(upload)
