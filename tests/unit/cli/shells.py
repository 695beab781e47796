"""A person at the command line, and run directories made by hand to look at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from orchestrator.cli import main as entry
from orchestrator.clock import SystemClock, iso
from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.jsonio import pretty, to_json
from orchestrator.contract.manifest import CheckpointManifest
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import ClaimRecord, LogRecord, SubmissionRecord
from orchestrator.contract.spec import StartFrom
from orchestrator.contract.summary import RunSummary
from orchestrator.controller.status_rows import blank_row, with_summary
from orchestrator.operations.submit import SiteSettings, make_spec
from orchestrator.registry.store import RunEntry
from orchestrator.run_directory import attempts, checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.run_directory.segments import SegmentWriter
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import Storage
from tests.harness.clock import FakeClock
from tests.harness.runs import Bench

RUN = "fake-261124-abc123"
T0 = 1_800_000_000.0
PLAN = BatchPlan(micro=2, accumulation=2, world_size=2)
JOB = """\
# kept as it stands, comments too
name: digits
backend: local
model: {path: ./model, revision: null}
quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4}
lora: {r: 8, lora_alpha: 16, target_modules: llm}
data: {train: ./train.json}
training: {max_steps: 20, per_device_train_batch_size: 2, gradient_accumulation_steps: 2,
  learning_rate: 1.0e-3, warmup_steps: 2, seed: 7}
deepspeed: {stage: 2}
resources: {nodes: 1, gpus_per_node: 2}
checkpoint: {uri: ./runs, every_steps: 5, keep_last: 2}
preemption: {grace_s: 10, max_failures_without_progress: 1}
"""


class Shell:
    """Calls the command line in this process and keeps what it printed."""

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


class Desk(Shell):
    """A person with a job file at the command line."""

    def __init__(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(capsys)
        self.bench = bench
        self.job = bench.folder / "job.yaml"
        self.job.write_text(JOB)

    def submit(self, *argv: str, code: int = 0) -> str:
        return self.json("submit", str(self.job), *argv, code=code)["run_id"]

    def row(self, run: str) -> dict[str, Any]:
        return self.json("status", run)["runs"][0]

    def until(self, run: str, **wanted: Any) -> dict[str, Any]:
        """Wait until the status row has at least these values."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            row = self.row(run)
            if all(row[k] >= v if k != "state" else row[k] == v for k, v in wanted.items()):
                return row
            time.sleep(0.05)
        raise AssertionError(f"not reached: {wanted}; last: {row}\n{self.bench.folder}")

    def eventually(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds."""
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.05)

    def files_with(self, text: str) -> list[str]:
        """Every file below the workplace that contains `text`; those of writers at work may go."""
        found = []
        for path in self.bench.folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and text.encode() in path.read_bytes():
                    found.append(path.name)
        return found


class Built:
    """A run directory made by hand: submitted and cancelled, so that nothing will change."""

    def __init__(self, bench: Bench, run_id: str = RUN) -> None:
        job = bench.job()
        uri = f"{job.checkpoint.uri}/{run_id}"
        self.registry = bench.registry
        self.storage: Storage = open_storage(uri)
        self.storage.put(layout.RESOLVED, pretty(to_json(job)))
        spec = make_spec(job, run_id, uri, bench.registry.state_dir, SiteSettings())
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
