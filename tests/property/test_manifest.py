"""Arbitrary JSON into every stored type gives a value or MalformedJson, nothing else."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.contract import event, manifest, plan, records, resolved, spec, summary
from orchestrator.contract.jsonio import MalformedJson, canonical, from_json, loads, to_json
from orchestrator.contract.manifest import CheckpointManifest, FileEntry, check_files
from orchestrator.contract.records import LogRecord, decode_record, encode_record
from orchestrator.storage.protocol import StorageError, path_parts

MODULES = (event, manifest, plan, records, resolved, spec, summary)
CLASSES = sorted(
    {
        c
        for m in MODULES
        for c in vars(m).values()
        if isinstance(c, type) and dataclasses.is_dataclass(c) and c.__module__ == m.__name__
    },
    key=lambda c: c.__name__,
)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud800", "latest", "commit", ""])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def shaped(cls: Any) -> st.SearchStrategy[Any]:
    """Objects with the right field names and mostly wrong or mostly right values."""
    names = [f.name for f in dataclasses.fields(cls)]
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


def test_all_classes_are_found() -> None:
    assert len(CLASSES) > 25


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_any_json_gives_a_value_or_malformed_json(cls: Any, data: st.DataObject) -> None:
    value = data.draw(JSON | shaped(cls))
    try:
        found = from_json(cls, value)
    except MalformedJson as fault:
        assert cls.__name__ in str(fault)
        return
    assert isinstance(found, cls)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_every_value_survives_the_round_trip(cls: Any, data: st.DataObject) -> None:
    value = data.draw(built(cls))
    assert from_json(cls, loads(canonical(to_json(value)))) == value


PLAIN: Any = st.none() | st.booleans() | st.integers(-9, 9) | st.text("aä€", max_size=3)


def built(want: Any) -> st.SearchStrategy[Any]:
    """Values of the annotated type (what hypothesis would build from types, but JSON-safe)."""
    if dataclasses.is_dataclass(want):
        hints = typing.get_type_hints(want)
        # a schema beyond ours is refused
        names = [f.name for f in dataclasses.fields(want) if f.name != "schema"]
        return st.builds(want, **{n: built(hints[n]) for n in names})  # type: ignore[arg-type]
    origin, args = typing.get_origin(want), typing.get_args(want)
    if want is Any:
        return PLAIN
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(built(args[0]), max_size=3).map(tuple)
    if origin is not None and isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return st.dictionaries(st.text("ab", max_size=2), built(args[1]), max_size=3)
    if origin is not None:  # a union with None
        return st.one_of(*map(built, args))
    return {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    }[want]


# --- log records


@given(built(LogRecord), st.integers(1, 10**6))
def test_records_round_trip_or_are_refused_for_their_body(record: LogRecord, seq: int) -> None:
    record = dataclasses.replace(record, seq=seq)
    value = loads(encode_record(record))
    try:
        found = decode_record(value, seq)
    except MalformedJson:
        assert record.kind != "fence"
        return
    assert found == record
    with pytest.raises(MalformedJson, match="calls itself"):
        decode_record(value, seq + 1)


@given(JSON | shaped(LogRecord) | shaped(LogRecord).map(lambda v: v | {"sum": "0"}))
@example({"sum": "x", "a": float("nan")})
@example({"sum": "x", "a": "\ud800"})
@example({"sum": {}})
def test_any_json_as_a_record(value: Any) -> None:
    with pytest.raises(MalformedJson):
        decode_record(value, 1)


@given(built(LogRecord), st.data())
def test_any_change_of_a_record_is_seen(record: LogRecord, data: st.DataObject) -> None:
    record = dataclasses.replace(record, kind="fence", seq=1)
    good = encode_record(record)
    position = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[position] ^= data.draw(st.integers(1, 255))
    try:
        assert decode_record(loads(bytes(bad)), 1) == record
    except MalformedJson:
        return


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        decode_record(loads(data), 1)
    except MalformedJson:
        return
    raise AssertionError(data)


# --- paths


PARTS = st.sampled_from(["a", "b.c", "..", ".", "", "~", "ä", " ", "a\n", "\0", "a" * 300, "-rf"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join) | st.text(max_size=12)


@given(st.lists(PATHS, max_size=4))
def test_checked_files_stay_inside(paths: list[str]) -> None:
    files = [FileEntry(path=p, size_bytes=1, hash="blake3:" + "0" * 64) for p in paths]
    try:
        check_files(files)
    except MalformedJson:
        return
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert path.isascii()
        assert path.isprintable()
        assert " " not in path
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))


@given(PATHS)
def test_paths_of_a_storage_stay_inside(path: str) -> None:
    try:
        parts = path_parts(path)
    except StorageError:
        return
    assert not {"", ".", ".."} & set(parts)
    assert not path.startswith("/")
    assert "\0" not in path


@given(built(CheckpointManifest))
def test_total_bytes(value: CheckpointManifest) -> None:
    assert value.total_bytes == sum(f.size_bytes for f in value.files)


def test_json_reads_back_what_json_writes() -> None:
    text = json.dumps({"a": 0.1})
    assert loads(text.encode()) == {"a": 0.1}
