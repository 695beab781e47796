"""The quantized base: stored by the first attempt, loaded by later ones, without a trace."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract.resolved import ResolvedJob
from orchestrator.storage.hashing import sha256
from tests.harness.training import Disturbance, TrainingBench, TrainingRun, assert_same_training

pytestmark = [pytest.mark.training, pytest.mark.timeout(1200)]


def how(run: TrainingRun, attempt: int) -> list[str]:
    """What became of the base in an attempt."""
    return [event["data"]["how"] for event in run.of_attempt(attempt, "base")]


def weights(bench: TrainingBench) -> list[Path]:
    """The large files of all snapshots beside the runs."""
    folder = bench.folder / "runs" / f".base-cache-{os.getuid()}"
    return sorted(folder.rglob("*.safetensors"))


def finished(bench: TrainingBench, job: ResolvedJob) -> TrainingRun:
    run = bench.probed(job, [])
    assert run.finish().state == "SUCCEEDED", run.logs()
    return run


def test_the_base_is_quantized_once(bench: TrainingBench, straight: TrainingRun) -> None:
    late = Disturbance("boundary", 18, "SIGUSR1", [1], code=75, committed=18)
    first = bench.disturbed(bench.job(), [late])
    assert first.finish().state == "SUCCEEDED", first.logs()
    assert (how(first, 1), how(first, 2)) == (["stored"], ["loaded"])
    assert_same_training(first, straight)
    adapter = first.storage.get(f"{first.directory_of()}/adapter_model.safetensors")
    assert sha256(adapter) == first.manifest().adapter_sha256

    # Another run on the same base has it from its first step on.
    second = finished(bench, bench.job())
    assert how(second, 1) == ["loaded"]
    assert_same_training(second, straight)
    assert second.curve(0)[1].loss_hex == straight.curve(0)[1].loss_hex

    # Other settings need another base.
    (stored,) = weights(bench)
    short = replace(bench.job(), training={**bench.job().training, "max_steps": 6})
    other = finished(
        bench, replace(short, quantization={**short.quantization, "bnb_4bit_quant_type": "fp4"})
    )
    assert how(other, 1) == ["stored"]
    assert len(weights(bench)) == 2
    assert other.manifest().facts["base_digest"] != straight.manifest().facts["base_digest"]

    # One flipped bit, and the base is quantized anew, which is said.
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    third = finished(bench, short)
    assert how(third, 1) == ["stored"]
    assert any("quantized anew" in e["data"]["message"] for e in third.of_attempt(1, "warning"))
    assert third.curve(0)[1].loss_hex == straight.curve(0)[1].loss_hex
    assert third.manifest().facts["base_digest"] == straight.manifest().facts["base_digest"]
    assert not stored.exists()
    assert len(weights(bench)) == 2
