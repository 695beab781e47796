"""The house rules that can be read off the source: layers, sizes, what is caught and called."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[2]
MAX_FUNCTION, MAX_FILE = 80, 450

CATCH_ALL = {
    "orchestrator/cli/main.py": "a crash becomes a report for a person",
    "orchestrator/operations/status.py": "one run must not hide all others",
    "orchestrator/storage/posix.py": "removes a half-written file, then raises again",
    "trainer/base_model/watch.py": "a digest computed aside is told to the rank that waits",
    "trainer/checkpoint/save_result.py": "a save that failed is an outcome on every rank",
    "trainer/tracking/metrics.py": "a metric that cannot be written never stops a run",
    "trainer/base_model/snapshot.py": "removes half a snapshot, then raises again",
    "trainer/process/rank.py": "whatever ends a rank becomes its exit code and its last words",
    "trainer/tracking/trackers.py": "a tracker that fails never stops a run",
    "trainer/tracking/wandb.py": "a tracker that fails never stops a run",
}
"""The only files that may catch everything, and why."""

ONLY_IN = {"deepspeed": "trainer/", "lightkube": "orchestrator/backends/kubernetes/"}
"""Packages that a single module may import, and where it lives."""

NEVER = {"pickle", "cloudpickle", "marshal", "shelve", "dill"}
"""Nothing of ours unpickles anything."""


@cache
def sources() -> dict[str, ast.Module]:
    files = sorted(f for top in ("orchestrator", "trainer") for f in (ROOT / top).rglob("*.py"))
    return {f.relative_to(ROOT).as_posix(): ast.parse(f.read_text(), str(f)) for f in files}


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield name, node


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    return [(node.module or "").split(".")[0]]


def test_the_layers_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_functions_are_short() -> None:
    long = [
        f"{name}:{node.lineno} {node.name}"
        for name, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno >= MAX_FUNCTION  # type: ignore[attr-defined]
    ]
    assert long == []


def test_files_are_short() -> None:
    long = {n: (ROOT / n).read_text().count("\n") for n in sources()}
    assert {n: lines for n, lines in long.items() if lines > MAX_FILE} == {}


def test_everything_is_caught_only_where_planned() -> None:
    found = set()
    for name, node in nodes(ast.ExceptHandler):
        kind = node.type  # type: ignore[attr-defined]
        caught = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        if any(c is None or getattr(c, "id", "") in ("Exception", "BaseException") for c in caught):
            found.add(name)
    assert found <= set(CATCH_ALL)


@pytest.mark.parametrize("name", ["print", "eval", "exec", "breakpoint"])
def test_never_called(name: str) -> None:
    found = [
        f"{file}:{node.lineno}"  # type: ignore[attr-defined]
        for file, node in nodes(ast.Call)
        if getattr(node.func, "id", "") == name  # type: ignore[attr-defined]
    ]
    assert found == []


def test_what_a_person_reads_is_written_in_one_place() -> None:
    """There it is escaped for the terminal (orchestrator/cli/escape.py)."""
    writers = {"sys.stdout.write", "sys.stderr.write", "click.echo", "click.secho"}
    found = {
        file
        for file, node in nodes(ast.Call)
        if file.startswith("orchestrator/cli/") and ast.unparse(node.func) in writers  # type: ignore[attr-defined]
    }
    assert found == {"orchestrator/cli/common.py"}


def test_nothing_unpickles() -> None:
    found = [
        file for file, node in nodes(ast.Import, ast.ImportFrom) if NEVER & set(imported(node))
    ]
    assert found == []


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_one_module_imports(package: str) -> None:
    files = {f for f, node in nodes(ast.Import, ast.ImportFrom) if package in imported(node)}
    assert len(files) <= 1
    assert all(f.startswith(ONLY_IN[package]) for f in files)


def test_time_is_read_in_one_place_below_the_shell() -> None:
    """Domain, contract and storage take a clock, so that tests can replace it."""
    pure = ("orchestrator/domain/", "orchestrator/contract/", "orchestrator/storage/")
    found = [
        file
        for file, node in nodes(ast.Import, ast.ImportFrom)
        if file.startswith(pure) and {"time", "datetime"} & set(imported(node))
    ]
    assert found == []


def test_domain_does_no_input_or_output() -> None:
    forbidden = {"os", "pathlib", "subprocess", "socket", "threading", "random", "secrets", "io"}
    found = [
        (file, imported(node))
        for file, node in nodes(ast.Import, ast.ImportFrom)
        if file.startswith("orchestrator/domain/") and forbidden & set(imported(node))
    ]
    assert found == []


ARCHITECTURE = ROOT / "docs" / "architecture.md"
WHERE = re.compile(r"^\| ([^|]+) \| `?([\w/]+\.py):(\w+)`? \|$", re.MULTILINE)
PLACES = WHERE.findall(ARCHITECTURE.read_text()) if ARCHITECTURE.exists() else []


@pytest.mark.skipif(not ARCHITECTURE.exists(), reason="no docs/architecture.md")
def test_every_row_of_what_happens_where_is_understood() -> None:
    rows = [x for x in ARCHITECTURE.read_text().splitlines() if x[:1] == "|" and ".py" in x]
    assert len(PLACES) == len(rows) > 10


@pytest.mark.parametrize(("what", "file", "name"), PLACES, ids=[f"{f}:{n}" for _, f, n in PLACES])
def test_what_happens_happens_there(what: str, file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"{what}: there is no {file}"
    tree = ast.parse((ROOT / file).read_text())
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert name in found, f"{what}: no function {name} in {file}"
