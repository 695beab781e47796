"""JSON in, frozen values out; names of files; lines on the wire."""

from __future__ import annotations

import math
import socket

import pytest

from orchestrator.clock import SystemClock, iso, parse_iso
from orchestrator.contract import layout
from orchestrator.contract.event import Event, StepMetrics
from orchestrator.contract.jsonio import (
    MalformedJson,
    canonical,
    digest,
    from_json,
    loads,
    pretty,
    to_json,
)
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import StopRecord, VerdictRecord
from orchestrator.contract.resolved import Resources
from orchestrator.contract.spec import StartFrom
from orchestrator.contract.wire import MAX_LINE, LineBuffer, attach, encode
from tests.harness.clock import FakeClock


def test_canonical_is_the_same_for_equal_values() -> None:
    one, two = {"b": [1, 2.5], "a": {"ä": None}}, {"a": {"ä": None}, "b": [1, 2.5]}
    assert canonical(one) == canonical(two) == '{"a":{"ä":null},"b":[1,2.5]}'.encode()
    assert digest(one) == digest(two)
    assert loads(pretty(one)) == one
    assert pretty(one).endswith(b"\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_is_not_written(value: float) -> None:
    for write in (canonical, pretty):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"a": [value]})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 99999, b"1" * 5000, b'{"a" 1}'])
def test_every_fault_of_parsing_is_the_same_error(data: bytes) -> None:
    with pytest.raises(MalformedJson, match="not JSON"):
        loads(data)


def test_round_trip_with_tuples_nested_and_none() -> None:
    record = VerdictRecord(attempt=1, slot=0, code=75, reason="r", rank_codes=(75, None, -9))
    assert from_json(VerdictRecord, loads(canonical(to_json(record)))) == record
    event = Event(time="", kind="step", writer="w", data={"a": [1, {"b": None}]})
    assert from_json(Event, to_json(event)) == event


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    assert from_json(StartFrom, {"future": [1]}) == StartFrom()


@pytest.mark.parametrize(
    ("cls", "value", "text"),
    [
        (BatchPlan, {"micro": 1, "accumulation": 2}, "BatchPlan.world_size is missing"),
        (BatchPlan, [], "BatchPlan: not an object"),
        (
            BatchPlan,
            {"micro": True, "accumulation": 2, "world_size": 1},
            "BatchPlan.micro: bool instead of int",
        ),
        (
            BatchPlan,
            {"micro": 1.0, "accumulation": 2, "world_size": 1},
            "BatchPlan.micro: float instead of int",
        ),
        (
            BatchPlan,
            {"micro": None, "accumulation": 2, "world_size": 1},
            "BatchPlan.micro: NoneType instead of int",
        ),
        (StartFrom, {"kind": "newest"}, "StartFrom.kind: 'newest' is none of"),
        (StartFrom, {"kind": []}, "StartFrom.kind: .. is none of"),
        (StartFrom, {"ref": 1}, "StartFrom.ref: int instead of str"),
        (
            Resources,
            {"nodes": 1, "gpus_per_node": 1, "memory_gb": 10**400},
            "Resources.memory_gb: a number beyond every float",
        ),
        (
            VerdictRecord,
            {"attempt": 1, "slot": 0, "code": 1, "reason": "", "rank_codes": [1, "x"]},
            r"VerdictRecord.rank_codes\[1\]: str instead of int",
        ),
        (
            VerdictRecord,
            {"attempt": 1, "slot": 0, "code": 1, "reason": "", "rank_codes": {}},
            "VerdictRecord.rank_codes: not a list",
        ),
        (Event, {"time": "", "kind": "", "writer": "", "data": []}, "Event.data: not an object"),
        (
            StopRecord,
            {"attempt": 1, "slot": 0, "index": 1, "reason": "", "seconds_left": "60"},
            "StopRecord.seconds_left: str instead of float",
        ),
    ],
)
def test_what_is_wrong_is_named(cls: type, value: object, text: str) -> None:
    with pytest.raises(MalformedJson, match=text):
        from_json(cls, value)


def test_an_integer_does_for_a_float() -> None:
    found = from_json(
        StepMetrics,
        {
            "step": 1,
            "attempt": 1,
            "loss": 1,
            "loss_hex": "",
            "time": "",
            "learning_rate": 0,
            "grad_norm": None,
        },
    )
    assert (found.loss, type(found.loss), found.grad_norm) == (1.0, float, None)


# --- names


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (layout.claim(3), 3),
        (layout.log_record(12), 12),
        (layout.submission(1), 1),
        (layout.attempt_dir(7), 7),
        (layout.lease(5), 5),
        (layout.slot(1, 2), 2),
        (layout.segment("x/", 9), 9),
        (layout.segment("x/", 9, ".log"), 9),
        ("log/100000000.json", 100000000),
        ("0.json", 0),
        (layout.submission_id(1), None),
        (layout.stop(1, 0, 2), None),
        (layout.verdict(1, 0), None),
        ("log/00000009.json.bak", None),
        ("log/00000009.json~", None),
        ("log/.tmp-12", None),
        ("log/.nfs0012", None),
        ("log/12a.json", None),
        ("log/-1.json", None),
        ("log/+1", None),
        ("log/1_0.json", None),
        ("log/١٢.json", None),
        ("log/²", None),
        ("", None),
        ("/", None),
        ("log/1 .json", None),
        ("log/" + "9" * 5000 + ".json", None),
    ],
)
def test_number_of(path: str, number: int | None) -> None:
    assert layout.number_of(path) == number


def test_names_sort_as_their_numbers() -> None:
    for name in (layout.log_record, layout.claim, layout.submission, layout.lease):
        names = [name(n) for n in (1, 2, 10, 99, 100, 12345)]
        assert names == sorted(names)


# --- the wire


def test_lines_survive_any_cutting() -> None:
    data = b"".join(encode("log", {"rank": n, "line": "ä\n\0"}) for n in range(5))
    for size in (1, 2, 7, 1000):
        buffer = LineBuffer()
        found = [m for i in range(0, len(data), size) for m in buffer.feed(data[i : i + size])]
        assert [m["rank"] for m in found] == list(range(5))
        assert found[0] == {"t": "log", "rank": 0, "line": "ä\n\0"}


@pytest.mark.parametrize(
    "line", [b"", b"x", b"[]", b"{}", b'{"t":1}', b"\xff", b"[" * 99999, b'{"t":"a"', b"1" * 5000]
)
def test_malformed_lines_are_skipped(line: bytes) -> None:
    found = list(LineBuffer().feed(line + b"\n" + encode("beat", {})))
    assert found == [{"t": "beat"}]


def test_a_message_without_end() -> None:
    buffer = LineBuffer()
    with pytest.raises(OverflowError):
        for _ in range(MAX_LINE // (1 << 20) + 2):
            list(buffer.feed(b"x" * (1 << 20)))


def test_a_field_cannot_rename_the_message() -> None:
    assert next(iter(LineBuffer().feed(encode("beat", {"t": "verdict"})))) == {"t": "beat"}


def test_an_inherited_socket() -> None:
    one, two = socket.socketpair()
    with two:
        two.set_inheritable(True)
        with attach(one.detach()) as link:
            assert not link.get_inheritable()
            link.sendall(b"x")
            assert two.recv(1) == b"x"


# --- time


def test_iso_and_back() -> None:
    assert iso(0.0) == "1970-01-01T00:00:00.000Z"
    for seconds in (0.0, 1.5, 1_700_000_000.123, 4e9):
        assert parse_iso(iso(seconds)) == pytest.approx(seconds, abs=0.0011)
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_iso("yesterday")


def test_a_fake_clock_moves_by_hand() -> None:
    clock = FakeClock(10.0)
    clock.sleep(2.0)
    clock.sleep(-5.0)
    clock.advance(1.0)
    assert (clock.now(), clock.monotonic()) == (13.0, 13.0)


def test_the_system_clock() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    clock.sleep(-1)
    assert clock.monotonic() >= before
    assert clock.now() > 1e9
