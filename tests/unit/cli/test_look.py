"""The commands that look: on run directories built by hand, and on one real fake run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as entry
from orchestrator.cli import table
from orchestrator.cli.logs import Tail
from orchestrator.clock import FakeClock, SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.event import Event, StepMetrics
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ClaimRecord, LogRecord, SubmissionRecord
from orchestrator.contract.spec import StartFrom
from orchestrator.contract.summary import RunSummary
from orchestrator.controller import status
from orchestrator.controller.rows import blank_row, with_summary
from orchestrator.controller.submit import SiteSettings, make_spec
from orchestrator.registry.store import RunEntry
from orchestrator.storage import attempts, checkpoints
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Storage
from orchestrator.storage.runlog import RunLog
from orchestrator.storage.segments import SegmentWriter
from tests.harness.runs import Bench

RUN = "fake-261124-abc123"
T0 = 1_800_000_000.0
PLAN = BatchPlan(micro=2, accumulation=2, world_size=2)


class Shell:
    """Calls the command line and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *argv: str, code: int = 0) -> str:
        self._capsys.readouterr()
        found = entry.main(argv)
        out, self.err = self._capsys.readouterr()
        assert found == code, f"exit code {found}\n{out}\n{self.err}"
        return out

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self(*argv, "--json", code=code))

    def lines(self, *argv: str) -> list[Any]:
        return [json.loads(line) for line in self(*argv, "--json").splitlines()]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    before = signal.getsignal(signal.SIGPIPE)
    yield Shell(capsys)
    signal.signal(signal.SIGPIPE, before)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setenv("QVL_STATE_DIR", str(bench.registry.state_dir))
    yield bench
    bench.close()


class Built:
    """A run directory made by hand: submitted and cancelled, so that nothing will change."""

    def __init__(self, bench: Bench, run_id: str = RUN) -> None:
        job = bench.job()
        uri = f"{job.checkpoint.uri}/{run_id}"
        self.registry = bench.registry
        self.storage: Storage = open_storage(uri)
        self.storage.put(layout.RESOLVED, pretty(to_json(job)))
        spec = make_spec(job, run_id, uri, bench.registry, SiteSettings())
        attempts.create_submission(
            self.storage,
            SubmissionRecord(
                number=1, key=f"{run_id}-1", token="t", spec=spec, start=StartFrom(), time=iso(T0)
            ),
        )
        self.storage.create(layout.TOMBSTONE, b"{}")
        self.entry = RunEntry(
            run_id=run_id, name="fake", backend="local", uri=uri, created_at=T0, gpus=2
        )
        self.registry.add(self.entry)
        self.log = RunLog(self.storage, FakeClock(T0))

    def claim(self, number: int) -> None:
        claim = ClaimRecord(
            attempt=number,
            submission=1,
            backend_id="1",
            restart_count=number - 1,
            token=f"t{number}",
            plan=PLAN,
            time=iso(T0 + number),
        )
        assert attempts.create_claim(self.storage, claim) is None

    def print(self, attempt: int, rank: int, *lines: tuple[float, str]) -> None:
        writer = SegmentWriter(
            self.storage, layout.logs(attempt, f"rank-{rank}"), suffix=".log", segment_lines=2
        )
        for at, text in lines:
            writer.add_text(f"{iso(T0 + at)} {text}".encode())
        writer.flush()

    def metrics(self, attempt: int, steps: range, *, loss: float | None = 1.5) -> None:
        writer = SegmentWriter(self.storage, layout.metrics(attempt, 0))
        for step in steps:
            line = StepMetrics(
                step=step,
                attempt=attempt,
                loss=loss,
                loss_hex="nan" if loss is None else loss.hex(),
                learning_rate=1e-3,
                grad_norm=0.25,
                time=iso(T0 + step),
                samples=(1, 2),
            )
            writer.add(to_json(line))
        writer.flush()

    def checkpoint(self, attempt: int, step: int) -> LogRecord:
        folder = layout.checkpoint_dir(attempt, step)
        with self.storage.write_stream(f"{folder}/adapter_model.safetensors") as sink:
            sink.write(b"x" * 1000)
        manifest = manifest_of(attempt, step, sink.entry("adapter_model.safetensors"))
        digest = checkpoints.write_manifest(self.storage, folder, manifest)
        return checkpoints.commit(self.log, attempt, manifest, folder, digest)

    def held(self, **changes: Any) -> None:
        """As the controller last saw it: waiting for a person."""
        summary = RunSummary(
            run_id=self.entry.run_id,
            attempt=2,
            phase="ended",
            step=15,
            total_steps=20,
            loss=0.5,
            learning_rate=1e-3,
            step_seconds=1.0,
            save_seconds=1.0,
            checkpoint_step=10,
            checkpoint_time=iso(SystemClock().now() - 30),
            checkpoint_verified=True,
            preemptions=1,
            lost_steps=0,
            eta_s=None,
            time=iso(T0),
        )
        row = with_summary(blank_row(self.entry), summary)
        row |= {"state": "HELD", "reason": "contract", "message": "lora.r differs: 8, 16"}
        row |= {"next": f"qvl-orchestrate resume {RUN} --allow-change lora.r", **changes}
        final = row["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
        self.registry.saw(self.entry.run_id, row, final=final, at=SystemClock().now())


def manifest_of(attempt: int, step: int, *files: Any) -> CheckpointManifest:
    """A manifest with these files; everything else does not matter here."""
    return CheckpointManifest(
        run_id=RUN,
        attempt=attempt,
        step=step,
        epoch=0,
        samples_seen=0,
        nodes=1,
        gpus_per_node=2,
        zero_stage=2,
        plan=PLAN,
        trigger="interval",
        created_at=iso(T0),
        files=files,
        learning_rate_hex=(0.0).hex(),
        adapter_digest="",
        adapter_sha256="a" * 64,
        rank_digests=(),
        rng_digests=(),
        pending_eval=False,
    )


@pytest.fixture
def run(bench: Bench) -> Built:
    return Built(bench)


# --- status


def test_status_of_nothing_says_how_to_start(shell: Shell, bench: Bench) -> None:
    text = shell("status")
    assert "init" in text
    assert "submit" in text
    assert shell.json("status") == {"runs": []}


def test_status_json_is_the_documented_row(shell: Shell, run: Built) -> None:
    run.held()
    (row,) = shell.json("status")["runs"]
    assert 30 <= row["last_checkpoint"].pop("age_s") < 40
    assert row == {
        "run_id": RUN,
        "name": "fake",
        "backend": "local",
        "backend_job_id": None,
        "state": "HELD",
        "reason": "contract",
        "attempt": 2,
        "preemptions": 1,
        "step": 15,
        "total_steps": 20,
        "gpus": 2,
        "last_checkpoint": {"step": 10, "verified": True},
        "lost_steps": 0,
        "eta_s": None,
        "next": f"qvl-orchestrate resume {RUN} --allow-change lora.r",
    }


def test_status_as_text(shell: Shell, run: Built) -> None:
    run.held()
    head, row, as_of = shell("status").splitlines()
    assert head.split()[:5] == ["run", "name", "backend", "GPUs", "state"]
    assert re.search(r"HELD .* 15/20 +0\.5000 +10 (✓|ok) 3\d s +0 +- +qvl-orch", row)
    assert re.fullmatch(r"as of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", as_of)
    detailed = shell("status", "fake", "-v")
    assert f"run directory: {run.storage.uri}" in detailed
    assert "message: lora.r differs: 8, 16" in detailed


def test_status_shows_the_last_twenty_that_ended(shell: Shell, bench: Bench) -> None:
    for number in range(23):
        built = RunEntry(
            run_id=f"n-{number:02d}",
            name="n",
            backend="local",
            uri="/none",
            created_at=float(number),
            gpus=1,
        )
        bench.registry.add(built)
        row = blank_row(built) | {"state": "SUCCEEDED"}
        bench.registry.saw(built.run_id, row, final=True, at=T0)
    names = [row["run_id"] for row in shell.json("status")["runs"]]
    assert names == [f"n-{number:02d}" for number in range(3, 23)]
    assert "3 older runs are not shown" in shell("status")
    assert len(shell.json("status", "--all")["runs"]) == 23
    assert len(shell.json("status", "n-00", "n-00", "n-01")["runs"]) == 2


def test_status_of_a_run_whose_directory_is_away(shell: Shell, bench: Bench) -> None:
    bench.registry.add(
        RunEntry(run_id="gone-1", name="gone", backend="local", uri="/none", created_at=0, gpus=1)
    )
    text = shell("status")
    assert "not refreshed (never seen yet): " in text
    assert shell.json("status")["runs"][0]["state"] == "QUEUED"
    shell("status", "nobody", code=3)


def test_status_does_not_wait_for_a_storage_that_hangs(
    bench: Bench, run: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(status, "refresh", lambda *a: release.wait(30))
    monkeypatch.setattr(status, "BUDGET_S", 0.1)
    (seen,) = status.snapshot(bench.registry, SystemClock(), bench.registry.runs())
    assert seen.fault is not None
    assert all(t.daemon for t in threading.enumerate() if t.name == "status")
    release.set()


def test_the_terminal_table_leaves_out_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = ["digits-261124-abc123", "digits", "local", "2", "HELD", "2", "1", "##.. 15/20"]
    row += ["0.5000", "10 ok 3 min", "0", "-", "qvl-orchestrate resume digits-261124-abc123"]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = table.drawn([row], [["    job: 17"]])
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert "backend" not in narrow
    assert "next: qvl-orchestrate resume" in narrow
    assert "job: 17" in narrow
    monkeypatch.setenv("COLUMNS", "200")
    wide = table.drawn([row], [[]])
    assert "…" not in wide
    assert all(column.title in wide for column in table.COLUMNS)
    assert "next:" not in wide


def test_numbers_as_people_read_them() -> None:
    assert [table.duration(s) for s in (None, 4, 200, 7500, 400_000)] == [
        "-", "4 s", "3 min", "2h05", "4 d",
    ]  # fmt: skip
    assert [table.size(n) for n in (0, 999, 1000, 999_960, 5 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "1.0 MB", "5.0 TB",
    ]  # fmt: skip
    assert table.bar(0, 0, symbols=False) == "........"
    assert table.bar(30, 20, symbols=False) == "########"


# --- logs


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
        {"attempt": 2, "rank": 0, "time": iso(T0 + 5), "line": "e"}
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

    monkeypatch.setattr("orchestrator.cli.logs.is_settled", settled)
    monkeypatch.setattr("orchestrator.cli.logs.FOLLOW_S", 0.0)
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
    assert shell.json("adopt", where) == {"runs": [{"run_id": RUN, "run_dir": where}]}
    assert run.registry.find("fake") == replace(run.entry, row=None)
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
    shell("adopt", str(moved), code=78)


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


COMMANDS = [
    "status", "logs", "events", "metrics", "checkpoints", "adopt", "version", "schema", "init",
]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example(shell: Shell, name: str) -> None:
    *_, last = shell(name, "--help").split("\n\n")
    assert last.strip().startswith("Example")
    assert f"qvl-orchestrate {name}" in last


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
