"""Which template is in force, what belongs to it, and its version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.contract.jsonio import MalformedJson
from orchestrator.errors import CheckpointError, UserError
from orchestrator.templates.find import SLURM_TEMPLATE, find_for, find_template, with_frozen
from orchestrator.templates.render import render
from orchestrator.templates.template import Template, canonical_name, freeze, thaw
from tests.unit.templates.conftest import MARK

OURS = '{% extends "slurm/train.sbatch.j2" %}\n'


def put(path: Path, text: str = OURS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MARK + text)
    return path


def find(**how: Path) -> Template:
    return find_template("slurm", SLURM_TEMPLATE, **how)


def said(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find(explicit=path)
    return str(caught.value)


def test_the_order_of_finding(tmp_path: Path) -> None:
    assert find().template_id == "checkout:slurm/train.sbatch.j2"
    assert find(site_dir=tmp_path).origin == "checkout"
    site = put(tmp_path / "slurm" / SLURM_TEMPLATE)
    assert find(site_dir=tmp_path).template_id == f"site:{site}"
    own = put(tmp_path / "own.j2")
    assert find(explicit=own, site_dir=tmp_path).template_id == f"user:{own}"


def test_everything_that_belongs_to_it_is_read_and_counts(tmp_path: Path) -> None:
    put(tmp_path / "slurm" / "more" / "inner.j2", "echo 1\n")
    put(tmp_path / "slurm" / "outer.j2", '{% include "more/inner.j2" %}')
    body = OURS + '{% block setup %}{% include "outer.j2" %}{% endblock %}'
    put(tmp_path / "slurm" / SLURM_TEMPLATE, body)
    before = find(site_dir=tmp_path)
    assert [s.name for s in before.sources] == [
        "site/train.sbatch.j2",
        "slurm/train.sbatch.j2",
        "site/outer.j2",
        "site/more/inner.j2",
    ]
    put(tmp_path / "slurm" / "more" / "inner.j2", "echo 2\n")
    assert find(site_dir=tmp_path).sha256 != before.sha256


def test_the_checksum_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name / "slurm" / SLURM_TEMPLATE)
    one, other = (find(site_dir=tmp_path / name) for name in ("a", "b"))
    assert one.sha256 == other.sha256


def test_a_users_template_may_extend_the_sites(tmp_path: Path) -> None:
    put(tmp_path / "slurm" / SLURM_TEMPLATE)
    own = put(tmp_path / "own.j2", '{% extends "site/train.sbatch.j2" %}')
    names = [s.name for s in find(explicit=own, site_dir=tmp_path).sources]
    assert names == ["./own.j2", "site/train.sbatch.j2", "slurm/train.sbatch.j2"]


@pytest.mark.parametrize(
    ("first", "what"),
    [
        ("#!/bin/bash\n", "own.j2:1: the version of the template is missing"),
        ("\n{# qvl-template api=1 #}\n", "own.j2:1: the version"),
        ("{# qvl-template api=2 #}\n", "api=2, newer than this version's api=1"),
        ("{# qvl-template api=0 #}\n", "api=0, older than this version's api=1"),
    ],
)
def test_the_version(tmp_path: Path, first: str, what: str) -> None:
    path = tmp_path / "own.j2"
    path.write_text(first + OURS)
    text = said(path)
    assert what in text
    assert "hint:" in text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{% if %}", "own.j2:2: "),
        ("a\n{{ x", "own.j2:3: "),
        ('{% extends "slurm/nothing.j2" %}', "own.j2:2: 'slurm/nothing.j2' is none of ours"),
        ('{% include "gone.j2" %}', "own.j2:2: template "),
        ("{% include name %}", "own.j2:2: the name of the file is not written out"),
        ('{% include "../up.j2" %}', "'../up.j2' is no name of a template"),
        ('{% include "/etc/passwd" %}', "'/etc/passwd' is no name of a template"),
        ('{% include "slurm/../../x" %}', "is no name of a template"),
        ("{% autoescape true %}{% endautoescape %}", "own.j2:2: autoescape"),
        ("a\r\n", "own.j2:2: a carriage return"),
        ("a\0b", "own.j2:2: a NUL character"),
    ],
)
def test_refusals_name_file_line_and_cure(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "own.j2"
    path.write_bytes((MARK + text).encode())
    found = said(path)
    assert what.replace("none of ours", "none of our templates") in found


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in said(tmp_path / "none.j2")
    path = tmp_path / "bytes.j2"
    path.write_bytes(MARK.encode() + b"\xff")
    assert "bytes.j2:2: not UTF-8 text" in said(path)
    path.write_bytes(b"x" * 300_000)
    assert "more than 256 KiB" in said(path)


def test_an_endless_chain_ends(tmp_path: Path) -> None:
    for i in range(40):
        put(tmp_path / f"t{i}.j2", f'{{% include "t{i + 1}.j2" %}}')
    assert "more than 32 files" in said(tmp_path / "t0.j2")


def test_two_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    put(tmp_path / "a.j2", '{% include "b.j2" %}')
    put(tmp_path / "b.j2", '{% include "a.j2" %}')
    template = find(explicit=tmp_path / "a.j2")
    assert len(template.sources) == 2
    with pytest.raises(UserError, match="recursion"):
        render(template, {})


def test_a_frozen_template_needs_no_files(tmp_path: Path) -> None:
    path = put(tmp_path / "own.j2", "echo {{ x }}\n")
    block = with_frozen("slurm", SLURM_TEMPLATE, {"template": str(path), "qos": "a"})
    stored = json.loads(json.dumps(block))
    before = find(explicit=path)
    path.write_text(MARK + "echo changed\n")
    assert find_for("slurm", SLURM_TEMPLATE, stored) == before
    assert render(before, {"x": 1}).text == "echo 1\n"
    assert stored["qos"] == "a"


def test_a_damaged_frozen_template_is_refused() -> None:
    value = freeze(find())
    value["sources"][0]["text"] += " "
    with pytest.raises(MalformedJson, match="checksum"):
        thaw(value)
    with pytest.raises(CheckpointError):
        find_for("slurm", SLURM_TEMPLATE, {"frozen": value})
    with pytest.raises(CheckpointError):
        find_for("slurm", SLURM_TEMPLATE, {"frozen": "x"})


@pytest.mark.parametrize(
    ("name", "parent", "found"),
    [
        ("x.j2", "slurm/t.j2", "slurm/x.j2"),
        ("x.j2", "site/t.j2", "site/x.j2"),
        ("x.j2", "./t.j2", "./x.j2"),
        ("slurm/x.j2", "./t.j2", "slurm/x.j2"),
        ("site/x.j2", "./t.j2", "site/x.j2"),
        ("d/x.j2", "site/t.j2", "site/d/x.j2"),
    ],
)
def test_names(name: str, parent: str, found: str) -> None:
    assert canonical_name(name, parent) == found
