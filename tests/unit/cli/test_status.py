"""`status`: the row, the table, runs whose directory is away or slow."""

from __future__ import annotations

import re
import threading

import pytest

from orchestrator.cli.output import table
from orchestrator.clock import SystemClock
from orchestrator.controller.status_rows import blank_row
from orchestrator.operations import status
from orchestrator.registry.store import RunEntry
from tests.harness.runs import Bench
from tests.unit.cli.shells import RUN, T0, Built, Shell


def test_status_of_nothing_says_how_to_start(shell: Shell, bench: Bench) -> None:
    text = shell("status")
    assert "init" in text
    assert "submit" in text
    assert shell.json("status") == {"runs": []}


def test_status_json_is_the_documented_row(shell: Shell, run: Built) -> None:
    run.held()
    (row,) = shell.json("status")["runs"]
    assert 30 <= row["last_checkpoint"].pop("age_s") < 40
    assert 0 <= row.pop("stale_s") < 10
    assert row.pop("last_seen").endswith("Z")
    assert row == {
        "run_id": RUN,
        "name": "fake",
        "backend": "local",
        "backend_job_id": None,
        "state": "HELD",
        "reason": "contract",
        "message": "lora.r differs: 8, 16",
        "attempt": 2,
        "preemptions": 1,
        "step": 15,
        "total_steps": 20,
        "gpus": 2,
        "last_checkpoint": {"step": 10, "verified": True},
        "lost_steps": 0,
        "eta_s": None,
        "next": f"qvl-orchestrate resume {RUN} --allow-change lora.r",
        "fault": None,
        "attended": None,
        "lost_exact": True,
        "save_fault": None,
    }


def test_status_as_text(shell: Shell, run: Built) -> None:
    run.held()
    head, row, why, as_of = shell("status").splitlines()
    assert why == "    why (contract): lora.r differs: 8, 16"
    assert head.split()[:5] == ["run", "name", "backend", "GPUs", "state"]
    assert re.search(r"HELD .* 15/20 +0\.5000 +10 (✓|ok) 3\d s +0 +- +qvl-orch", row)
    assert re.fullmatch(r"as of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", as_of)
    run.held(startup={"imports": 4.02, "claim": 0.1, "own": 1.0, "first step": 2.0})
    detailed = shell("status", "fake", "-v")
    assert "start-up: claim 0.1 s, imports 4.0 s, first step 2.0 s, own 1.0 s\n" in detailed
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
    (row,) = shell.json("status")["runs"]
    assert (row["stale_s"], row["last_seen"]) == (None, None)
    assert row["fault"].startswith("/none is gone")
    shell("status", "nobody", code=3)


def test_status_does_not_wait_for_a_storage_that_hangs(
    bench: Bench, run: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(status, "first_look", lambda *a: (release.wait(30), None))
    monkeypatch.setattr(status, "BUDGET_S", 0.1)
    monkeypatch.setattr(status, "STALE_BUDGET_S", 0.2)
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
