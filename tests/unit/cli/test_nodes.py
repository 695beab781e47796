"""`nodes list|clear`, `status -v` and `controller unit`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.services.systemd_unit import unit_text
from orchestrator.clock import SystemClock
from orchestrator.domain.node_exclusion import EXCLUDED_S, NodeDeath
from orchestrator.registry.store import Registry
from tests.harness.runs import Bench
from tests.unit.cli.shells import Shell


@pytest.fixture
def registry(bench: Bench) -> Registry:
    return bench.registry


@pytest.fixture
def deaths(registry: Registry) -> float:
    """Two runs died on gpu07, one on gpu08; returns when the last of the two did."""
    now = SystemClock().now()
    for run, node, at in (("a-1", "gpu07", 90.0), ("b-1", "gpu07", 30.0), ("c-1", "gpu08", 5.0)):
        death = NodeDeath(node=node, run_id=run, attempt=1, at=now - at, error="crash: no CUDA")
        registry.add_deaths([death, death])
    return now - 30.0


def test_excluded_nodes_are_listed_with_until_when_and_why(shell: Shell, deaths: float) -> None:
    (node,) = shell.json("nodes", "list")["nodes"]
    assert (node["node"], node["deaths"], node["error"]) == ("gpu07", 2, "crash: no CUDA")
    assert node["until"] == pytest.approx(deaths + EXCLUDED_S)
    for text in (shell("nodes", "list"), shell("status", "-v")):
        assert "gpu07  excluded until 2" in text
        assert "2 attempts died there quickly (crash: no CUDA)" in text
        assert "gpu08" not in text
    assert "gpu07" not in shell("status")


def test_clear_forgives_one_or_all_and_refuses_others(shell: Shell, deaths: float) -> None:
    shell("nodes", "clear", "gpu08", code=78)
    assert "excluded: gpu07" in shell.err
    assert shell.json("nodes", "clear", "gpu07") == {"cleared": ["gpu07"]}
    assert shell("nodes", "list") == "no node is excluded\n"
    assert shell.json("nodes", "clear") == {"cleared": []}


def test_what_was_forgiven_is_not_entered_again(registry: Registry, deaths: float) -> None:
    known = registry.deaths(0.0)
    registry.forgive([])
    registry.add_deaths(known)
    assert registry.deaths(0.0) == []


def test_what_is_too_old_to_matter_is_not_kept(registry: Registry, deaths: float) -> None:
    known = registry.deaths(0.0)
    newest = max(known, key=lambda death: death.at)
    registry.add_deaths([newest], since=newest.at - 1.0)
    assert registry.deaths(0.0) == [newest]
    registry.add_deaths(known, since=newest.at - 1.0)
    assert registry.deaths(0.0) == [newest]


def test_the_unit_runs_this_installation_with_these_variables(shell: Shell) -> None:
    text = shell.json("controller", "unit", "--interval", "60")["text"]
    assert text in shell("controller", "unit", "--interval", "60") + "\n"
    assert '"controller" "run" "--interval" "60"\n' in text
    assert 'Environment="QVL_STATE_DIR=' in text
    assert 'Environment="PATH=' in text


@pytest.mark.parametrize("path", ["/usr/bin:/bin", '/a b:/c"d:/50%:/$HOME\\x:/ünï'])
def test_systemd_takes_the_unit(tmp_path: Path, path: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    file = tmp_path / "qvl.service"
    environ = {"PATH": path, "HF_TOKEN": "secret"}
    text = unit_text("/usr/bin/env", tmp_path / "state", environ, 30.0)
    assert "secret" not in text
    file.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(file)],
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
