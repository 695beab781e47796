"""What the pages name is there: files behind links, and the tests that hold a promise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = ("unit", "contract", "property", "arch", "faults", "integration", "harness")
SOURCE = re.compile(
    r"(?<![\w/.])((?:orchestrator|trainer|tests|tools|slurm|k8s|examples)/[\w/.-]+\.\w+)"
)
NAMED = re.compile(rf"(?<![\w/])((?:{'|'.join(FOLDERS)})/[\w/]+\.py)|::(test_\w+)")


def anchor(heading: str) -> str:
    """The fragment by which a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file, _, fragment = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it tells of what was there once
    named = {name.rstrip(".") for name in SOURCE.findall(page.read_text())}
    places = (ROOT, page.parent)
    assert [n for n in sorted(named) if not any((p / n).exists() for p in places)] == []


def named_tests() -> Iterator[tuple[str, str]]:
    """File and test of each `::test_name`; an empty name where only a file is named."""
    file = ""
    for found, name in NAMED.findall((ROOT / "docs" / "reliability.md").read_text()):
        file = found or file
        yield file, name


def test_the_tests_that_are_named_exist() -> None:
    pairs = list(named_tests())
    assert len(pairs) > 100
    for file, name in pairs:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert f"def {name}" in path.read_text(), f"{file}::{name}"
