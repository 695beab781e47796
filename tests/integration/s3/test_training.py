"""Real Q-LoRA training whose run directory is on S3, preempted inside an accumulation window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import CheckpointSpec
from tests.harness import jobs
from tests.harness.training import Disturbance, TrainingBench, TrainingRun

pytestmark = [pytest.mark.s3, pytest.mark.training]


# Two ranks, three attempts and the model take 40 s on two free cores.
SLOW_S = 900


@pytest.fixture
def training_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainingBench]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    jobs.write_data(tmp_path / "data")
    jobs.make_model(tmp_path / "data")
    bench = TrainingBench(tmp_path, data=tmp_path / "data")
    yield bench
    bench.close()


@pytest.mark.timeout(SLOW_S)
def test_preempted_on_s3_it_equals_an_undisturbed_run_on_disk(
    training_bench: TrainingBench, s3_uri: str
) -> None:
    job = training_bench.job()
    job = replace(job, training={**job.training, "max_steps": 3, "eval_steps": 3})
    on_s3 = replace(job, checkpoint=CheckpointSpec(uri=s3_uri, every_steps=2))
    inside = Disturbance("micro", 1, "SIGUSR1", to=[1], code=75, committed=1, micro=1)
    run = training_bench.disturbed(on_s3, [inside])
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 0]
    assert run.commits()[0] == (1, 1, "notice")
    straight = training_bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    assert run.outcome() == straight.outcome()
    assert run.final_state() == straight.final_state()
    assert run.evaluations() == straight.evaluations()
    assert_loaded_from_copies(run, training_bench)


def assert_loaded_from_copies(run: TrainingRun, bench: TrainingBench) -> None:
    """The ranks read a copy on the node, which is gone; TensorBoard says where it writes."""
    places = [e["data"]["directory"] for e in run.events("resuming")]
    assert len(places) == len(run.verdicts()) - 1
    assert all(place.startswith("attempts/") for place in places)
    left = [p for p in (bench.folder / "tmp").rglob("*") if p.is_file()]
    assert {p.parent.name for p in left} == {"tensorboard"}
    said = [e["data"]["message"] for e in run.events("warning")]
    assert any("trackers cannot write to s3://" in text for text in said)
