"""The other commands that look: on run directories built by hand, and on one real fake run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.services.tail import Tail
from orchestrator.clock import iso
from orchestrator.contract import layout
from orchestrator.contract.event import Event
from orchestrator.contract.jsonio import to_json
from orchestrator.contract.records import VerdictRecord
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.segments import SegmentWriter
from tests.harness.runs import Bench
from tests.unit.cli.shells import RUN, T0, Built, Shell

# --- logs


def test_the_last_lines_after_a_crash_hold_the_error(shell: Shell, run: Built) -> None:
    run.claim(1)
    run.print(1, 1, (1.0, "step 1"), (2.0, "ValueError: bad sample"))
    run.print(1, 0, *((3.0 + i, f"broken pipe {i}") for i in range(9)))
    record = VerdictRecord(
        attempt=1, slot=0, code=1, reason="crash", message="rank 1: ValueError: bad sample",
        rank_codes=(1, 1), time=iso(T0 + 20),
    )  # fmt: skip
    attempts.write_verdict(run.storage, record)
    assert shell("logs", RUN, "-n", "2").splitlines() == [
        "[a1 r1] step 1",
        "[a1 r1] ValueError: bad sample",
        "[a1 r0] broken pipe 7",
        "[a1 r0] broken pipe 8",
    ]
    assert shell.err == "attempt 1 failed: crash: rank 1: ValueError: bad sample\n"


def test_a_rank_that_there_is_not(shell: Shell, run: Built) -> None:
    run.claim(1)
    run.print(1, 0, (1.0, "a"))
    shell("logs", RUN, "--rank", "99", code=2)
    assert "has no rank 99" in shell.err
    assert "it has 2, counted from 0" in shell.err
    assert shell("logs", RUN, "--rank", "1") == ""
    assert shell.err == "rank 1 has printed nothing\n"


def test_logs_merge_ranks_by_time(shell: Shell, run: Built) -> None:
    run.claim(1)
    run.claim(2)
    run.claim(3)
    run.print(1, 0, (0, "old"))
    run.print(2, 0, (1, "a"), (3, "c"), (5, "e"))
    run.print(2, 1, (2, "b"), (4, "d  "))
    assert shell("logs", RUN).splitlines() == [
        "[a2 r0] a", "[a2 r1] b", "[a2 r0] c", "[a2 r1] d  ", "[a2 r0] e",
    ]  # fmt: skip
    assert shell("logs", RUN, "--rank", "0", "-n", "2").splitlines() == ["c", "e"]
    assert shell("logs", RUN, "--attempt", "1") == "[a1 r0] old\n"
    assert shell.lines("logs", RUN, "-n", "1") == [
        {"attempt": 2, "rank": 1, "time": iso(T0 + 4), "line": "d  "},
        {"attempt": 2, "rank": 0, "time": iso(T0 + 5), "line": "e"},
    ]
    shell("logs", RUN, "--attempt", "9", code=2)


def test_logs_without_any_show_the_agent(shell: Shell, run: Built) -> None:
    assert shell("logs", RUN) == ""
    for number, text in ((2, "early\n"), (10, "agent: no module torch\n")):
        file = run.registry.state_dir / "jobs" / f"{RUN}-{number}" / "agent.log"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert shell("logs", RUN) == "agent: no module torch\n"
    assert "what the agent says" in shell.err
    assert shell.lines("logs", RUN)[0]["attempt"] is None


def test_logs_keep_the_pieces_of_a_progress_bar(shell: Shell, run: Built) -> None:
    run.claim(1)
    run.print(1, 0, (1, "10%\r20% of it"), (2, "\x1b[0mö"))
    shown = shell.lines("logs", RUN)
    assert [line["line"] for line in shown] == ["10%", "20% of it", "\x1b[0mö"]
    assert shown[1]["time"] == iso(T0 + 1)


def test_a_tail_reads_each_line_once_while_segments_grow(run: Built) -> None:
    folder = layout.logs(1, "rank-0")
    writer = SegmentWriter(run.storage, folder, suffix=".log", segment_lines=3)
    tail = Tail(run.storage)
    seen = []
    for number in range(20):
        writer.add_text(str(number).encode())
        if number % 2:
            writer.flush()
        seen += list(tail.new(folder))
    assert seen == [str(number).encode() for number in range(20)]


def test_following_goes_on_over_attempts_until_it_is_settled(
    shell: Shell, run: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.claim(1)
    run.print(1, 0, (1, "one"))
    late = iter([lambda: run.print(1, 1, (2, "two")), lambda: run.claim(2), None])

    def settled(_: object) -> bool:
        act = next(late)
        if act is not None:
            act()
            return False
        run.print(2, 0, (3, "last words"))
        return True

    monkeypatch.setattr("orchestrator.cli.services.tail.is_settled", settled)
    monkeypatch.setattr("orchestrator.cli.services.tail.FOLLOW_S", 0.0)
    assert shell("logs", "-f", RUN).splitlines() == [
        "[a1 r0] one", "[a1 r1] two", "[a2 r0] last words",
    ]  # fmt: skip


# --- events


def test_events_of_all_writers_by_time(shell: Shell, run: Built) -> None:
    run.claim(1)
    events = [
        Event(time=iso(T0), kind="submitted", writer="cli", data={"submission": 1}),
        Event(
            time=iso(T0 + 1),
            kind="notice",
            writer="node-0",
            attempt=1,
            rank=1,
            data={"reason": "SIGTERM", "seconds_left": 58.25},
        ),
        Event(time=iso(T0 + 2), kind="held", writer="controller", data={"message": "look here"}),
    ]
    for event in reversed(events):
        parent = layout.run_events(event.writer)
        if event.attempt is not None:
            parent = layout.attempt_events(event.attempt, event.writer)
        writer = SegmentWriter(run.storage, parent)
        writer.add({**to_json(event), "token": "x"})
        writer.add({"no": "event"})
        writer.flush()
    first, second, third = shell("events", RUN).splitlines()
    assert first == f"{iso(T0)[:19]}Z  cli         submitted         submission=1"
    assert second.endswith("a1 r1       notice            reason=SIGTERM seconds_left=58.25")
    assert third.endswith("look here")
    assert shell.lines("events", RUN) == [to_json(event) for event in events]
    assert [e["kind"] for e in shell.lines("events", RUN, "--kind", "held")] == ["held"]
    assert len(shell.lines("events", "-f", RUN)) == 3
    shell("events", RUN, "--kind", "nonsense", code=2)


# --- metrics


def test_metrics_are_one_curve_with_replayed_steps_cut(shell: Shell, run: Built) -> None:
    assert shell("metrics", RUN) == ""
    for number in (1, 2, 3):
        run.claim(number)
    run.metrics(1, range(1, 8))
    run.metrics(3, range(6, 9), loss=None)
    lines = shell.lines("metrics", RUN)
    assert [(m["step"], m["attempt"]) for m in lines] == [
        (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 3), (7, 3), (8, 3),
    ]  # fmt: skip
    assert lines[0] == {
        "step": 1,
        "attempt": 1,
        "loss": 1.5,
        "loss_hex": (1.5).hex(),
        "learning_rate": 1e-3,
        "grad_norm": 0.25,
        "time": iso(T0 + 1),
    }
    assert shell("metrics", RUN).splitlines()[-1].split()[:3] == ["8", "3", "nan"]
    head, first, *_ = shell("metrics", RUN, "--csv").splitlines()
    assert head == "step,attempt,loss,loss_hex,learning_rate,grad_norm,time"
    assert first.startswith("1,1,1.5,0x1.8")
    shell("metrics", RUN, "--csv", "--json", code=2)


# --- checkpoints


def test_checkpoints_and_their_states(shell: Shell, run: Built) -> None:
    assert shell.json("checkpoints", RUN) == []
    records = [run.checkpoint(1, 5), run.checkpoint(1, 10), run.checkpoint(2, 15)]
    checkpoints.retire(run.storage, run.log, 2, records[0], "newer ones stand")
    checkpoints.mark_bad(run.log, 2, records[1], "a file is damaged")
    found = shell.json("checkpoints", RUN)
    assert [(c["step"], c["state"]) for c in found] == [
        (5, "retired"), (10, "bad"), (15, "committed"),
    ]  # fmt: skip
    assert found[2] == {
        "step": 15,
        "attempt": 2,
        "path": f"{run.storage.uri}/{layout.checkpoint_dir(2, 15)}",
        "state": "committed",
        "size_bytes": 1000,
        "adapter_sha256": "a" * 64,
    }
    assert [c["verified"] for c in shell.json("checkpoints", RUN, "--verify")] == [None, None, True]
    assert "verified" in shell("checkpoints", RUN, "--verify").splitlines()[-1]


def test_verify_names_the_damaged_file(shell: Shell, run: Built) -> None:
    run.checkpoint(1, 5)
    run.checkpoint(1, 10)
    name = f"{layout.checkpoint_dir(1, 5)}/adapter_model.safetensors"
    Path(run.storage.uri, name).write_bytes(b"y" * 1000)
    text = shell("checkpoints", RUN, "--verify", code=73)
    assert [line.split()[3] for line in text.splitlines()[1:]] == ["DAMAGED", "verified"]
    assert f"{name} does not match its hash" in shell.err
    found = shell.json("checkpoints", RUN, "--verify", code=73)
    assert [c["verified"] for c in found] == [False, True]
    shell("checkpoints", RUN)


def test_a_checkpoint_that_is_retired_while_it_is_read_is_not_damaged(
    shell: Shell, run: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run.checkpoint(1, 5)
    verify = checkpoints.verify

    def slow(*args: Any, **kwargs: Any) -> Any:
        checkpoints.retire(run.storage, run.log, 1, record, "newer ones stand")
        return verify(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "verify", slow)
    (found,) = shell.json("checkpoints", RUN, "--verify")
    assert (found["state"], found["verified"]) == ("retired", None)


# --- adopt, version, schema, init


def test_adopt_enters_run_directories(shell: Shell, run: Built) -> None:
    where = run.storage.uri
    run.registry.remove(RUN)
    shell("status", RUN, code=3)
    adopted = {"run_id": RUN, "run_dir": where, "only_read": None}
    assert shell.json("adopt", where) == {"runs": [adopted]}
    found = run.registry.find("fake")
    assert found == replace(run.entry, row=found.row, final=True, seen_at=found.seen_at)
    assert found.row is not None
    assert found.row["state"] == "CANCELLED", "a run that has ended is not looked after again"
    assert shell.json("status", RUN)["runs"][0]["state"] == "CANCELLED"
    assert RUN in shell("adopt", where)


def test_adopt_refuses_what_is_no_run(shell: Shell, run: Built, tmp_path: Path) -> None:
    where = Path(run.storage.uri)
    run.registry.remove(RUN)
    shell("adopt", str(where), str(where.parent), code=78)
    assert "no run directory" in shell.err
    assert run.registry.runs() == []
    shell("adopt", str(tmp_path / "nothing"), code=78)
    moved = where.rename(where.with_name("copy"))
    shell("adopt", str(moved), code=78)
    assert "is not where run" in shell.err
    (moved / layout.RESOLVED).write_text("{}")
    shell("adopt", str(moved), code=73)
    assert "resolved.json is damaged" in shell.err


def test_version_imports_none_of_them(shell: Shell) -> None:
    found = shell.json("version")
    assert found["packages"]["submitit"]
    assert set(found) == {"qvl-orchestrate", "python", "packages"}
    assert "deepspeed" in shell("version")


def test_schema_is_json(shell: Shell) -> None:
    assert shell.json("schema") == json.loads(shell("schema"))


def test_init_writes_once(
    shell: Shell, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell("init")
    text = Path("job.yaml").read_text()
    assert "model:" in text
    Path("job.yaml").write_text("mine")
    shell("init", code=78)
    assert Path("job.yaml").read_text() == "mine"
    assert shell.json("init", "--force") == {"file": str(tmp_path / "job.yaml")}
    assert Path("job.yaml").read_text() == text
    shell("init", "no/such/folder.yaml", code=78)


def test_nothing_heavy_is_imported_to_look(bench: Bench, run: Built) -> None:
    run.held()
    code = (
        "import sys; from orchestrator.cli.main import main; assert main(['status']) == 0; "
        "heavy = {'torch', 'rich', 'pydantic', 'yaml', 'submitit', 'fsspec', 'jinja2'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- a real run


def test_looking_at_a_real_run(shell: Shell, bench: Bench) -> None:
    driven = bench.submit(step_s=0.02)
    driven.until_step(3, attempt=1)
    driven.notify("SIGTERM")
    assert driven.drive().state == "SUCCEEDED"
    run_id = driven.run.run_id
    (row,) = shell.json("status", run_id)["runs"]
    assert (row["state"], row["step"], row["attempt"]) == ("SUCCEEDED", 20, 2)
    lines = shell.lines("metrics", run_id)
    assert [(m["step"], m["loss_hex"]) for m in lines] == [
        (step, m.loss_hex) for step, m in sorted(driven.curve().items())
    ]
    kinds = {e["kind"] for e in shell.lines("events", run_id)}
    assert {"submitted", "notice", "committed", "requeued", "verdict", "finished"} <= kinds
    assert len(shell("events", run_id).splitlines()) == len(shell.lines("events", run_id))
    verified = shell.json("checkpoints", run_id, "--verify")
    assert verified[-1]["step"] == 20
    assert verified[-1]["verified"]
    began = time.monotonic()
    shell("logs", "-f", run_id)
    shell("events", "-f", run_id)
    assert time.monotonic() - began < 5.0
