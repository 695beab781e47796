"""Parsing: every fault is a JobFileError with its line, whatever the bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import Place
from orchestrator.config.load import parse_job
from orchestrator.config.reading.document import MAX_BYTES, parse
from orchestrator.errors import JobFileError
from tests.unit.config.conftest import JOB


def refused(source: bytes | str) -> str:
    with pytest.raises(JobFileError) as caught:
        parse(source, "job.yaml")
    return str(caught.value)


def test_places_are_those_of_the_keys() -> None:
    document = parse("a:\n  b: [1,\n    2]\nc: x\n", "f")
    assert document.data == {"a": {"b": [1, 2]}, "c": "x"}
    lines = {path: place.line for path, place in document.places.items()}
    assert lines == {(): 1, ("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3, ("c",): 4}
    assert document.places[()] == Place("f", 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 1e-3), ("1.0e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-3", -3)),
        *(("+7", 7), ("007", 7), ("0x1F", 31), ("0o17", 15), ("true", True), ("False", False)),
        *(("no", "no"), ("yes", "yes"), ("on", "on"), ("12:30:00", "12:30:00"), ("~", None)),
        *(("null", None), ("''", ""), ("'1'", "1"), ("2024-01-01", "2024-01-01"), ("1_0", "1_0")),
        *((".inf", ".inf"), ("=", "="), ("&a x", "x")),
    ],
)
def test_scalars(text: str, value: object) -> None:
    got = parse(f"a: {text}", "f").data["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "job.yaml:3 a: given twice, first in line 1"),
        ("a:\n  x: 1\n  x: 2\n", "job.yaml:3 a.x: given twice, first in line 2"),
        ("a: !!python/object:os.system x", "job.yaml:1 a: the tag !!python/object:os.system"),
        ("a: !!python/object/apply:os.system [x]", "job.yaml:1 a: the tag"),
        ("a: &x [*x]", "job.yaml:1 a[0]: an alias contains itself"),
        ("a: {<<: {b: 1}}", "merge keys (<<) are not allowed"),
        ("? [a]\n: 1", "a key must be plain text"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a:\n\tb: 1", "indent with blanks, not tabs"),
        ("a: b: c", "job.yaml:1: not YAML: mapping values are not allowed here"),
        ("a: [1", "job.yaml:1: not YAML"),
        ("a: 1e999", "job.yaml:1 a: the number is out of range"),
        ("a: " + "9" * 5000, "job.yaml:1 a: the number is out of range"),
        ('a: "\\ud800"', "a character that is not allowed"),
        ('a: "\\0"', "a character that is not allowed"),
        ("a: \x07", "job.yaml:1: the character U+0007 is not allowed"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 45 + "]" * 45, "nested too deeply"),
        ("- " * 5000, "nested too deeply"),
        ("x" * (MAX_BYTES + 1), "are too many for a file of settings"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    assert said in refused(text)


def test_not_utf8_names_the_line() -> None:
    assert refused(b"a: 1\nb: \xff\n") == "job.yaml:2: not UTF-8 text"


def test_an_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "check the aliases" in refused("\n".join(lines))


def test_aliases_are_allowed() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "f").data == {"a": {"b": 1}, "c": {"b": 1}}


def never_anything_else(source: bytes | str) -> None:
    with contextlib.suppress(JobFileError):
        parse_job(source, Path("job.yaml"))


@given(st.binary(max_size=400))
def test_any_bytes(source: bytes) -> None:
    never_anything_else(source)


@given(st.text(max_size=400))
def test_any_text(source: str) -> None:
    never_anything_else(source)


@given(st.text(alphabet=" \n:-[]{}&*!|>'\"#%@`?,ab1.~<\t\\", max_size=80))
def test_any_yaml_punctuation(source: str) -> None:
    never_anything_else(source)


KEYS = [line.split(":")[0] for line in JOB.splitlines()] + ["env", "secrets", "code", "slurm", "zz"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_block(key: str, value: object) -> None:
    lines = [line for line in JOB.splitlines() if not line.startswith(f"{key}:")]
    never_anything_else("\n".join([*lines, f"{key}: {flow(value)}"]))


NAMES = ["max_steps", "learning_rate", "optim", "bf16", "report_to", "lora_dropout", "r", "path"]


@given(st.sampled_from(["training", "lora", "model", "data"]), st.sampled_from(NAMES), VALUES)
def test_any_value_of_a_field(block: str, name: str, value: object) -> None:
    lines = [line for line in JOB.splitlines() if not line.startswith(f"{block}:")]
    never_anything_else("\n".join([*lines, f"{block}: {{{name}: {flow(value)}}}"]))


def flow(value: object) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return "null" if value is None else str(value)


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_job_file_is_refused(text: str) -> None:
    with pytest.raises(JobFileError, match="the file is empty"):
        parse_job(text, Path("job.yaml"))
    assert parse(text, "site.yaml").data is None
