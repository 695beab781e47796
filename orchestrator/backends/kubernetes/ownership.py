"""Whether pods can read a run directory on a file system that they share with the submitter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.settings import kubernetes_settings
from orchestrator.errors import UserError


def refuse_other_user(block: Mapping[str, Any], folder: Path, uid: int) -> None:
    """Refuse (UserError) pods that would run as somebody to whom `folder` is closed.

    uid: of the submitter. A file system that gives everything to one user of its own knows no
    owners, and says nothing here.
    """
    settings = kubernetes_settings(block)
    about = folder.stat()
    if about.st_uid != uid or settings.run_as_user == uid:
        return
    groups = (settings.fs_group, settings.run_as_group)
    if about.st_mode & 0o070 == 0o070 and about.st_gid in groups:
        return
    user = "the image's user" if settings.run_as_user is None else f"user {settings.run_as_user}"
    raise UserError(
        f"the pods run as {user}, to whom the run directory is closed: {folder} belongs to user "
        f"{uid} (mode {about.st_mode & 0o7777:04o})",
        hint=f"kubernetes.run_as_user: {uid} in the job file; or group_sharing: true in the site "
        f"file, and kubernetes.fs_group: {os.getgid()}",
    )
