"""The command line in this process, with a state folder of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.services import follow
from orchestrator.controller import loop
from tests.harness.runs import Bench
from tests.unit.cli.shells import Built, Desk, Shell


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


@pytest.fixture
def run(bench: Bench) -> Built:
    return Built(bench)


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    before = {s: signal.getsignal(s) for s in (signal.SIGPIPE, signal.SIGTERM)}
    monkeypatch.setenv("QVL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QVL_TRAINER_MODULE", "trainer.testing.fake")
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.01")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(follow, "POLL_S", 0.1)
    bench = Bench(tmp_path)
    yield Desk(bench, capsys)
    for process in loop._detached:
        process.kill()
        process.wait()
    bench.close()
    for number, handler in before.items():
        signal.signal(number, handler)
