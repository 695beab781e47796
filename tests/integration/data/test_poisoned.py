"""`data check` finds every fault by file and reason, raises no false alarm, and agrees with
what the trainer can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.integration.data.poison import LIMIT, Poisoned

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("default")]


def check(*args: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", "data", "check", *args, "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="session", params=[".json", ".jsonl"])
def report(request: pytest.FixtureRequest, poison: Poisoned, model: Path) -> dict[str, Any]:
    file = poison.file.with_suffix(request.param)
    code, found = check("--data", file, "--model", model, "--max-length", str(LIMIT))
    assert code == 78
    assert found["files"][0]["file"] == str(file)
    return found


def test_every_fault_is_found_and_nothing_else(poison: Poisoned, report: dict[str, Any]) -> None:
    found: dict[int, set[str]] = defaultdict(set)
    for finding in report["findings"]:
        found[finding["record"]].add(finding["kind"])
        assert finding["reason"]
    wrong = {
        name: (sorted(expected), sorted(found[i]))
        for i, (name, expected) in enumerate(zip(poison.names, poison.expected, strict=True))
        if expected != found[i]
    }
    assert wrong == {}
    kinds = {kind for expected in poison.expected for kind in expected}
    assert len(kinds) >= 25


def test_findings_name_the_line_and_the_medium(poison: Poisoned, report: dict[str, Any]) -> None:
    by_record = {f["record"]: f for f in report["findings"]}
    jsonl = report["files"][0]["file"].endswith(".jsonl")
    for name in ("cut.jpg", "strip.png", "nowhere.png"):
        i = poison.names.index(name)
        assert name in by_record[i]["reason"]
        assert by_record[i]["line"] == (i + 1 if jsonl else 1)


def test_the_report_counts(poison: Poisoned, report: dict[str, Any]) -> None:
    from trainer.commands.data_check.kinds import FAULTS

    faulty = sum(bool(kinds & set(FAULTS)) for kinds in poison.expected)
    file = report["files"][0]
    assert (file["records"], file["faulty_records"]) == (len(poison.records), faulty)
    lengths = file["lengths"]
    good = len(poison.records) - faulty
    assert sum(count for _, _, count in lengths["histogram"]) == good
    assert lengths["max"] == LIMIT == report["limit_tokens"]
    assert report["memory"]["total_bytes"] > 0
    runs = report["sample"]["runs"]
    assert [run["text"] for run in runs if run["learned"]] == ["a thing<|im_end|>"]
    assert sum(run["tokens"] for run in runs) == report["sample"]["tokens"]


def test_the_trainer_agrees(poison: Poisoned, model: Path) -> None:
    """A fault is what the data set refuses; a warning and an oddity are read."""
    from trainer.commands.data_check.kinds import FAULTS
    from trainer.data.dataset import ChatDataset
    from trainer.vision_language.families import family_of
    from trainer.vision_language.families.processor import VisionChatProcessor
    from trainer.vision_language.formats import DataError

    processor = VisionChatProcessor.from_pretrained(model, family_of(model))
    data = ChatDataset(
        poison.records, processor, media_root=poison.root, max_length=LIMIT, file="train"
    )
    wrong = []
    for i, kinds in enumerate(poison.expected):
        try:
            length = len(data[i]["input_ids"])
        except DataError as fault:
            assert fault.record == i
            readable, said = False, fault.reason
        else:
            readable, said = True, f"{length} tokens"
        if readable == bool(kinds & set(FAULTS)):
            wrong.append((poison.names[i], said))
    assert wrong == []


def test_a_clean_set_is_clean(poison: Poisoned, model: Path, tmp_path: Path) -> None:
    clean = [r for r, k in zip(poison.records, poison.expected, strict=True) if not k]
    file = tmp_path / "clean.json"
    file.write_text(json.dumps(clean))
    options = ("--data", file, "--model", model, "--media-root", poison.root)
    code, found = check(*options, "--strict", "--decode")
    assert (code, found["findings"]) == (0, [])
    assert found["files"][0]["records"] == len(clean) > 25


INDEX_FAULTS: dict[str, tuple[bytes, set[tuple[str, int | None, int | None]]]] = {
    "bad line": (b'{"a": 1}\n{"messages": [}\n', {("json", 1, 2)}),
    "open array": (b'[{"id": "x"},\n{"id"', {("json", None, 2)}),
    "no comma": (b'[{"id": "x"}\n{"id": "y"}]', {("json", None, 2)}),
    "two arrays": (b'[{"id": "x"}]\n[{"id": "y"}]', {("documents", None, 2)}),
    "two objects on a line": (b'{"id": 1} {"id": 2}\n', {("documents", 0, 1)}),
    "object over lines": (b'{\n "id": 1\n}\n{\n "id": 2\n}\n', {("documents", None, None)}),
    "files joined": (b'{"id": 1}\n\xef\xbb\xbf{"id": 2}\n', {("late-bom", 1, 2)}),
    "order mark": (b'\xef\xbb\xbf{"id": 1}\n', {("bom", None, None)}),
    "latin-1": (b'{"id": 1}\n{"id": "\xfc"}\n', {("encoding", 1, 2)}),
    "latin-1 array": (b'[{"id": 1},\n{"id": "\xfc"}]', {("encoding", None, 2)}),
    "utf-16": ('{"id": 1}'.encode("utf-16"), {("encoding", None, None)}),
    "number": (b'{"id": 1}\n\n7\n', {("no-object", 1, 3)}),
    "list in array": (b'[{"id": 1}, []]', {("no-object", 1, 1)}),
    "key twice": (b'{"id": 1, "x": {"y": 1, "y": 2}}\n', {("duplicate-key", 0, 1)}),
    "nothing": (b" \n", {("empty-index", None, None)}),
    "empty array": (b"[]", {("empty-index", None, None)}),
    "deep": (b'{"id": ' + b"[" * 100_000 + b"\n", {("json", 0, 1)}),
}


@pytest.mark.parametrize("name", INDEX_FAULTS)
def test_a_damaged_index_says_where(name: str, tmp_path: Path) -> None:
    from trainer.commands.data_check.index import read

    content, wanted = INDEX_FAULTS[name]
    (tmp_path / "x.json").write_bytes(content)
    found = read(tmp_path / "x.json").findings
    assert {(f.kind, f.record, f.line) for f in found} == wanted


def test_an_index_that_is_not_there(model: Path, tmp_path: Path) -> None:
    code, found = check("--data", tmp_path / "none.json", "--model", model)
    assert (code, found["counts"]["faults"]) == (78, {"unreadable-index": 1})
