"""What `export` and `merge` take out of a run directory, and the model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli.services import result as results
from orchestrator.cli.services.model_card import model_card
from orchestrator.contract import layout
from orchestrator.contract.event import StepMetrics
from orchestrator.contract.manifest import CheckpointManifest, FileEntry
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.records import Commit
from orchestrator.contract.resolved import ModelSpec
from orchestrator.errors import CheckpointError, UserError
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.memory import MemoryStorage
from tests.harness import jobs

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "latest": b"x"}


def manifest(step: int) -> CheckpointManifest:
    return CheckpointManifest(
        run_id="run",
        attempt=2,
        step=step,
        epoch=0,
        samples_seen=12 * step,
        nodes=1,
        gpus_per_node=2,
        zero_stage=2,
        plan=BatchPlan(micro=2, accumulation=3, world_size=2),
        trigger="final",
        created_at="",
        files=tuple(FileEntry(path=n, size_bytes=len(d), hash=hash_bytes(d))
                    for n, d in FILES.items()),
        learning_rate_hex="0x0p+0",
        adapter_digest="blake3:0",
        adapter_sha256="a" * 64,
        rank_digests=(),
        rng_digests=(),
        pending_eval=False,
        facts={"data.train": "d" * 64, "version.peft": "0.21.2", "python.version": "3.11"},
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> results.Result:
    """A finished run of two attempts."""
    curve = [
        StepMetrics(step=s, attempt=1 + s // 10, loss=5.0 / s, loss_hex=(5.0 / s).hex(),
                    learning_rate=1e-3, grad_norm=1.0, time="")
        for s in range(1, 41)
    ]  # fmt: skip
    return results.Result(
        run_id="run",
        job=replace(jobs.job(tmp_path), name="cats"),
        commit=Commit(directory="c", step=40, manifest_hash="", trigger="final", size_bytes=1,
                      adapter_sha256="a" * 64),
        manifest=manifest(40),
        finished=True,
        attempts=(
            results.Attempt(number=1, reason="preempted", notice="SIGTERM", committed_step=9),
            results.Attempt(number=2, reason="done", notice=None, committed_step=40),
        ),
        curve=tuple(curve),
        evaluations=((20, 1.5), (40, 1.25)),
        trainable={"parameters": 1000, "total": 100000, "modules": 14},
        replaced={"train": 2},
    )  # fmt: skip


def test_the_card_tells_the_story(made: results.Result) -> None:
    card = model_card(made, "qwen2_5_vl")
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: peft" in head
    assert "tags: [lora, qlora, qvl-orchestrate]" in head
    for text in (
        "2 attempts, 1 of them ended by a preemption",
        "| 1 | preempted | SIGTERM | 9 |",
        "(2 x 3 x 2 processes), 480 samples in all",
        "1,000 of 100,000 parameters trained, in 14 modules",
        "2 broken samples of the train data were replaced",
        "| 40 | 0.1250 | 1.000e-03 | 5 |",
        "| 40 | 1.2500 |",
        "- versions: python 3.11, peft 0.21.2",
        f"- data.train: `{'d' * 64}`",
    ):
        assert text in body, text
    assert "not finished" not in body
    assert body.count("\n| ") < 30


def test_names_and_values_never_become_markup(made: results.Result) -> None:
    job = replace(made.job, model=replace(made.job.model, path='/x/`"a\n---\nb: c'))
    card = model_card(replace(made, job=job, finished=False), None, merged="changed")
    head = card.split("\n---\n")[0]
    assert head.splitlines()[1] == 'base_model: "/x/`\\"a\\n---\\nb: c"'
    assert "`/x/'\"a\\n---\\nb: c`" in card
    assert "not finished" in card
    assert "library_name: transformers" in head


def test_a_damaged_adapter_is_not_exported(made: results.Result, memory: MemoryStorage) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        results.adapter(memory, made)
    for name, data in FILES.items():
        memory.put(f"c/{name}", data)
    assert results.adapter(memory, made) == {n: FILES[n] for n in results.ADAPTER_FILES}
    memory.put("c/adapter_model.safetensors", b"weightz")
    with pytest.raises(CheckpointError, match=r"c/adapter_model\.safetensors is damaged"):
        results.adapter(memory, made)


def test_a_base_of_the_hub_is_named_by_its_id(made: results.Result, memory: MemoryStorage) -> None:
    for name, data in FILES.items():
        memory.put(f"c/{name}", data)
    job = replace(made.job, model=ModelSpec(path="Qwen/Qwen2.5-VL-7B-Instruct", revision="abc"))
    config = json.loads(results.adapter(memory, replace(made, job=job))["adapter_config.json"])
    assert config == {
        "base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct",
        "revision": "abc",
    }


def test_without_a_checkpoint_there_is_nothing(memory: MemoryStorage) -> None:
    run: Any = SimpleNamespace(storage=memory, run_id="run")
    RunLog(memory).append("fence", 1)
    with pytest.raises(UserError, match="run has no checkpoint; steps that are kept: none yet"):
        results.gather(run)
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        results.gather(run, 7)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep/new"
    with pytest.raises(RuntimeError), results.new_folder(target) as scratch:
        (scratch / "half").touch()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with results.new_folder(target) as scratch:
        (scratch / "a").touch(mode=0o600)
    assert [p.name for p in target.iterdir()] == ["a"]
    assert (target / "a").stat().st_mode & 0o777 == 0o644
    with pytest.raises(UserError, match="exists"), results.new_folder(target):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot be made"),
        results.new_folder(tmp_path / "file/new"),
    ):
        pass


def test_replaced_samples_are_counted_by_file(memory: MemoryStorage) -> None:
    for which, index in (("train", 3), ("train", 9), ("eval", 3)):
        memory.put(layout.replaced(which, index), b"{}")
    names = [e.path for e in memory.list(layout.REPLACED)]
    assert len(names) == 3
    assert results.replaced_counts(memory) == {"train": 2, "eval": 1}
