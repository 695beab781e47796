"""The same ids and pixels whether torchvision is installed or not.

`make test-families` puts torchvision into a folder of its own and names it in
QVL_TORCHVISION; without it these cases are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.runs import ROOT
from tests.integration.families.conftest import FAMILIES

TORCHVISION = os.environ.get("QVL_TORCHVISION")
GREY_LEVEL = 1 / 255 / 0.26
"""One of 255 grey levels in the normalised pixels of the channel with the smallest spread."""

pytestmark = [
    pytest.mark.families,
    pytest.mark.skipif(not TORCHVISION, reason="QVL_TORCHVISION names no folder"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_torchvision_changes_nothing(
    family: str, workplace: Callable[[str], Path], tmp_path: Path
) -> None:
    """Ours: equal. The library's own torchvision processor: the same grids, and pixels within
    four grey levels (it rounds between its two passes of resizing)."""
    import numpy as np

    folder = workplace(family)
    without = encode(folder, tmp_path / "without.npz", None)
    with_it = encode(folder, tmp_path / "with.npz", TORCHVISION)
    assert str(with_it["default"]) != str(without["default"])
    assert str(with_it["ours"]) == str(without["ours"])
    names = [name for name in without if not name.startswith(("default", "ours"))]
    assert len(names) == 30
    for name in names:
        assert np.array_equal(without[name], with_it[name]), name
    for number in range(10):
        assert np.array_equal(with_it[f"grid{number}"], with_it[f"default_grid{number}"])
        apart = np.abs(with_it[f"pixels{number}"] - with_it[f"default_pixels{number}"])
        assert apart.max() <= 4 * GREY_LEVEL, number
        assert apart.mean() <= 0.1 * GREY_LEVEL, number


def encode(folder: Path, out: Path, torchvision: str | None) -> dict[str, Any]:
    import numpy as np

    paths = [str(ROOT), *([torchvision] if torchvision else [])]
    script = ROOT / "tests/integration/families/encode.py"
    subprocess.run(
        [sys.executable, str(script), str(folder / "model"), str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    with np.load(out) as found:
        return dict(found)
