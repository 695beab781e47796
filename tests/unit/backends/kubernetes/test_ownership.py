"""Pods to whom the run directory is closed are refused at submit, with both cures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kubernetes.ownership import refuse_other_user
from orchestrator.errors import UserError

ME, GROUP = os.getuid(), os.getgid()
OTHER = ME + 10001


@pytest.mark.parametrize(
    ("block", "mode"),
    [
        ({"run_as_user": ME}, 0o700),
        ({"run_as_user": OTHER, "fs_group": GROUP}, 0o2770),
        ({"run_as_user": OTHER, "run_as_group": GROUP}, 0o2770),
        ({"fs_group": GROUP}, 0o770),
    ],
)
def test_pods_that_can_read_it(tmp_path: Path, block: dict[str, Any], mode: int) -> None:
    tmp_path.chmod(mode)
    refuse_other_user({"image": "x", **block}, tmp_path, ME)


@pytest.mark.parametrize(
    ("block", "mode", "who"),
    [
        ({}, 0o700, "the image's user"),
        ({"run_as_user": OTHER}, 0o700, f"user {OTHER}"),
        ({"run_as_user": OTHER, "fs_group": GROUP}, 0o700, f"user {OTHER}"),
        ({"run_as_user": OTHER, "fs_group": GROUP + 1}, 0o2770, f"user {OTHER}"),
    ],
)
def test_pods_that_cannot(tmp_path: Path, block: dict[str, Any], mode: int, who: str) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match=f"the pods run as {who}, to whom") as caught:
        refuse_other_user({"image": "x", **block}, tmp_path, ME)
    hint = caught.value.hint or ""
    assert f"kubernetes.run_as_user: {ME}" in hint
    assert f"kubernetes.fs_group: {GROUP}" in hint


def test_a_file_system_without_owners_says_nothing(tmp_path: Path) -> None:
    """All of it belongs to one user, whoever writes."""
    tmp_path.chmod(0o700)
    refuse_other_user({"image": "x"}, tmp_path, ME + 1)
