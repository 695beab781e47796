"""`data check` on the command line: requests, output, exit codes; the program is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as entry
from orchestrator.cli.services import tool
from orchestrator.errors import CheckpointError, InternalError, UserError

FINDING = {
    "kind": "broken",
    "file": "train.json",
    "reason": "a\x1b[2Jb.png: cut off",
    "record": 3,
    "line": 4,
    "level": "fault",
}
REPORT: dict[str, Any] = {
    "files": [
        {
            "file": "train.json",
            "records": 9,
            "faulty_records": 1,
            "text_only": 2,
            "distinct_images": 7,
            "tokens": 900,
            "image_tokens": 300,
            "learned_tokens": 90,
            "lengths": {"min": 50, "median": 100, "p95": 150, "max": 151,
                        "histogram": [[50, 101, 5], [101, 152, 3]]},
            "longest_record": 8,
        }
    ],
    "counts": {"faults": {"broken": 1}, "warnings": {}},
    "findings": [FINDING],
    "memory": {
        "micro_batch": 2,
        "tokens_with_padding": 302,
        "total_bytes": 5_000_000_000,
        "weights_bytes": 4_000_000_000,
        "adapter_bytes": 1,
        "activations_bytes": 2,
        "logits_bytes": 3,
    },
    "sample": {
        "record": 0,
        "tokens": 10,
        "runs": [
            {"text": "<|image_pad|>", "tokens": 4, "learned": False, "ids": [10]},
            {"text": "seven", "tokens": 1, "learned": True, "ids": [7]},
        ],
    },
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Requests; the answer is REPORT."""
    requests: list[dict[str, Any]] = []

    def run(name: str, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        requests.append({"name": name, **request, **options})
        return REPORT

    monkeypatch.setattr(tool, "run_tool", run)
    return requests


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose index is no JSON: that is for the check to say."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text("{")
    (tmp_path / "job.yaml").write_text(
        "name: x\nmodel: {path: ./model}\ndata: {train: ./train.jsonl, media_root: .}\n"
        "training: {max_steps: 9, per_device_train_batch_size: 3}\nlora: {r: 5}\n"
        "max_length: 77\npython: ./bin/python\nenv: {A: b}\n"
    )
    return tmp_path / "job.yaml"


def test_the_job_says_what_to_check(job: Path, asked: list[dict[str, Any]]) -> None:
    assert entry.main(["data", "check", str(job), "--processes", "3", "--decode"]) == 78
    (request,) = asked
    folder = job.parent
    request.pop("on_progress")
    assert request == {
        "name": "datacheck",
        "train": str(folder / "train.jsonl"),
        "eval": None,
        "media_root": str(folder),
        "model": str(folder / "model"),
        "revision": None,
        "max_length": 77,
        "micro": 3,
        "quantized": True,
        "checkpointing": False,
        "lora_rank": 5,
        "processes": 3,
        "decode": True,
        "python": str(folder / "bin/python"),
        "environ": {"A": "b"},
    }


def test_people_see_offenders_lengths_memory_and_a_sample(
    job: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    entry.main(["data", "check", str(job)])
    page = capsys.readouterr().out
    for line in (
        "9 records (1 with faults, 2 without a picture), 7 pictures",
        "length in tokens: 50 to 151, median 100, 95 % up to 150; record 8 is the longest",
        "estimated memory on one GPU: 5.0 GB",
        "<|image_pad|>  x 4",
        "  + seven",
        "fault: train.json:3 (line 4): broken: a\\x1b[2Jb.png: cut off",
        "faults: 1 (broken 1)",
        "warnings: 0",
    ):
        assert line in page
    assert "\x1b" not in page


def test_json_is_the_report(
    job: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["data", "check", str(job), "--json"]) == 78
    assert json.loads(capsys.readouterr().out) == REPORT


@pytest.mark.parametrize(
    ("faults", "warnings", "options", "code"),
    [
        ({}, {}, [], 0),
        ({}, {"cut": 2}, [], 0),
        ({}, {"cut": 2}, ["--strict"], 78),
        ({"json": 1}, {}, [], 78),
    ],
)
def test_exit_codes(
    job: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[str, int],
    warnings: dict[str, int],
    options: list[str],
    code: int,
) -> None:
    monkeypatch.setitem(REPORT, "counts", {"faults": faults, "warnings": warnings})
    assert entry.main(["data", "check", str(job), "--json", *options]) == code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "either a job file, or --run, or --data"),
        (["job.yaml", "--data", "x"], "either a job file, or --run, or --data"),
        (["--data", "x"], "--data needs --model"),
        (["job.yaml", "--model", "x"], "belong to --data"),
    ],
)
def test_options_that_contradict(
    args: list[str], message: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(["data", "check", *args]) == 2
    assert message in capsys.readouterr().err
    assert asked == []


Program = Callable[[str], str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """An interpreter that runs this Python text in place of the module."""

    def make(text: str) -> str:
        script = tmp_path / "python"
        script.write_text(f"#!{sys.executable}\n{text}\n")
        script.chmod(0o755)
        return str(script)

    return make


def test_progress_and_result_come_through(program: Program) -> None:
    python = program(
        "import json, sys, os\n"
        "asked = json.load(sys.stdin)\n"
        "print(json.dumps({'t': 'progress', 'done': 1}))\n"
        "print(json.dumps({'t': 'result', 'result': [asked, sys.argv[1:], os.environ['X']]}))"
    )
    seen: list[Any] = []
    answer: Any = tool.run_tool(
        "merge", {"a": "ü"}, python=python, environ={"X": "y"}, on_progress=seen.append
    )
    assert answer == [{"a": "ü"}, ["-m", "trainer.commands.tool", "merge"], "y"]
    assert seen == [{"t": "progress", "done": 1}]


@pytest.mark.parametrize(
    ("code", "kind"), [(78, UserError), (73, CheckpointError), (5, InternalError)]
)
def test_errors_of_the_program_are_ours(program: Program, code: int, kind: type) -> None:
    python = program(
        "import json\n"
        f"print(json.dumps({{'t': 'error', 'message': 'm', 'hint': 'h', 'exit_code': {code}}}))"
    )
    with pytest.raises(kind) as caught:
        tool.run_tool("merge", {}, python=python)
    assert (caught.value.message, caught.value.hint) == ("m", "h")


def test_a_program_that_breaks_shows_its_last_words(program: Program) -> None:
    with pytest.raises(InternalError, match=r"(?s)broke off \(3\).*No module named torch"):
        tool.run_tool("merge", {"a": 1}, python=program("import sys\nsys.stdin.read()\n"
                      "sys.stderr.write('No module named torch')\nsys.exit(3)"))  # fmt: skip
    with pytest.raises(InternalError, match=r"broke off \(4\)"):
        tool.run_tool("merge", {"a": "x" * 10**6}, python=program("raise SystemExit(4)"))
    with pytest.raises(UserError, match="cannot be run"):
        tool.run_tool("merge", {}, python="/nowhere/python")


def test_a_runs_own_interpreter_finds_our_code() -> None:
    code = "import importlib.util as u; print(u.find_spec('trainer').origin)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=tool._environment(sys.executable, {}),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    root = Path(tool.__file__).parents[3]
    assert done.stdout.strip() == str(root / "trainer" / "__init__.py")
    assert root == tool.ROOT
