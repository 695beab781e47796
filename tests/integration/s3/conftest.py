from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.controller import loop
from tests.harness.runs import Bench
from tests.unit.cli.shells import JOB, Desk


@pytest.fixture
def bench(tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A workplace whose run directories are on S3 alone; its agents do not outlive the test."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    bench = Bench(tmp_path, uri=s3_uri)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Outcome of the bench's job, undisturbed and on a file system."""
    bench = Bench(tmp_path_factory.mktemp("calm"))
    try:
        run = bench.submit()
        assert run.drive().state == "SUCCEEDED"
        return run.outcome()
    finally:
        bench.close()


@pytest.fixture
def desk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """A person at the command line whose job file names S3."""
    before = {s: signal.getsignal(s) for s in (signal.SIGPIPE, signal.SIGTERM)}
    monkeypatch.setenv("QVL_STATE_DIR", str(bench.registry.state_dir))
    monkeypatch.setenv("QVL_TRAINER_MODULE", "trainer.testing.fake")
    monkeypatch.setenv("QVL_FAKE_STEP_S", "0.02")
    monkeypatch.setenv("HOME", str(bench.folder))
    desk = Desk(bench, capsys)
    desk.job.write_text(JOB.replace("uri: ./runs", f"uri: {bench.uri}"))
    yield desk
    for process in loop._detached:
        process.kill()
        process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
