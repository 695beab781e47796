"""What an agent reads and leaves on a node of Slurm, and where nodes meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agent.start import leave_word, read_spec
from orchestrator.contract.jsonio import MalformedJson, canonical, to_json
from orchestrator.contract.spec import TrainSpec

SPEC = TrainSpec(
    run_id="r",
    storage="/runs/r",
    submission=1,
    backend="slurm",
    nodes=2,
    gpus_per_node=1,
    grace_s=5.0,
    python="python3",
)


def test_a_spec_comes_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    text = canonical(to_json(SPEC))
    (tmp_path / "spec.json").write_bytes(text)
    assert read_spec(str(tmp_path / "spec.json"), {}) == SPEC
    assert read_spec("-", {"QVL_SPEC": text.decode()}) == SPEC
    with pytest.raises(MalformedJson, match="QVL_SPEC is not set"):
        read_spec("-", {})


@pytest.mark.parametrize(
    ("node", "again", "line"), [("0", True, "75 requeue\n"), ("0", False, "75 leave\n")]
)
def test_the_word_for_the_batch_script(tmp_path: Path, node: str, again: bool, line: str) -> None:
    file = tmp_path / "verdict"
    leave_word({"QVL_VERDICT_FILE": str(file), "SLURM_NODEID": node}, 75, again=again)
    assert file.read_text() == line
    assert [p.name for p in tmp_path.iterdir()] == ["verdict"]


def test_only_the_batch_host_leaves_a_word_and_a_lost_folder_is_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "verdict"
    leave_word({"QVL_VERDICT_FILE": str(file), "SLURM_NODEID": "1"}, 75, again=True)
    leave_word({}, 75, again=True)
    leave_word({"QVL_VERDICT_FILE": str(tmp_path / "gone" / "verdict")}, 75, again=True)
    assert not list(tmp_path.iterdir())
