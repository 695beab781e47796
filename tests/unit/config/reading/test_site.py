"""The administrator's file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.models.site import SiteConfig
from orchestrator.config.reading.site import load_site, parse_site
from orchestrator.config.reading.site_file import find_site_file
from orchestrator.errors import UserError


def said(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_site(text.encode(), "site.yaml")
    return str(caught.value)


def test_everything_has_a_default() -> None:
    assert parse_site(b"", "site.yaml") == SiteConfig()
    assert SiteConfig().survives == "node"


def test_values_are_read() -> None:
    text = b"group_sharing: true\nmax_parallel_runs: 3\nsurvives: process\nnode_lost_s: 90\n"
    site = parse_site(text, "site.yaml")
    assert (site.group_sharing, site.max_parallel_runs, site.node_lost_s) == (True, 3, 90.0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "a: 1\ngroup_sharin: true\n",
            "site.yaml:2 group_sharin: unknown field\n    hint: did",
        ),
        ("zz: 1\n", "site.yaml:1 zz: unknown field\n  hint: known here: group_sharing, "),
        ("zz:\n  x: 1\n", "site.yaml:1 zz: unknown field"),
        ("max_parallel_runs: 0\n", "site.yaml:1 max_parallel_runs: must be at least 1, not 0"),
        ("group_sharing: 1\n", "group_sharing: must be true or false, not 1"),
        ("survives: [\n", "not YAML"),
        ("- a\n", "must be a block of fields, not a list"),
    ],
)
def test_refusals_name_line_and_field(text: str, what: str) -> None:
    assert what in said(text)


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    with contextlib.suppress(UserError):
        parse_site(raw, "site.yaml")
    with contextlib.suppress(UserError):
        parse_site(raw, "site.toml")


def test_which_file_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, system = tmp_path / "home", tmp_path / "etc"
    user = home / ".config" / "qvl-orchestrate" / "site.yaml"
    given_, named = tmp_path / "given.yaml", tmp_path / "named.conf"

    def find(path: Path | None = None, **environ: str) -> Path | None:
        return find_site_file(path, environ=environ, home=home, system=system)

    assert find() is None
    system.mkdir()
    (system / "site.toml").touch()
    assert find() == system / "site.toml"
    (system / "site.yaml").touch()
    with pytest.raises(UserError, match=r"etc: site.yaml and site.toml are both there") as caught:
        find()
    assert caught.value.hint == "remove site.toml"
    (system / "site.toml").unlink()
    assert find() == system / "site.yaml"
    user.parent.mkdir(parents=True)
    user.touch()
    assert find() == user
    named.write_text("max_parallel_runs = 5\n")
    assert find(QVL_SITE_FILE=str(named)) == named
    assert load_site(named).max_parallel_runs == 5  # TOML, as every file was once
    given_.write_text("max_parallel_runs: 7\n")
    assert find(given_, QVL_SITE_FILE=str(named)) == given_
    assert load_site(given_).max_parallel_runs == 7
    with pytest.raises(UserError, match="no such site file"):
        find(tmp_path / "none.toml")
    with pytest.raises(UserError, match="no such site file"):
        find(QVL_SITE_FILE=str(tmp_path / "none.toml"))
