"""A traced writer, and a folder that costs no disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.traced import Writer, missing


@pytest.fixture(scope="session")
def writer() -> Iterator[Writer]:
    if reason := missing():
        pytest.skip(reason)
    process = Writer()
    yield process
    process.close()


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: what is tested here survives no power loss."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="qvl-faults-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
