"""Every family: trained on two ranks, evaluated, preempted in the middle of a step, resumed
to the same bits; its adapter loads in plain PEFT, merges and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as cli
from orchestrator.contract import layout
from orchestrator.contract.jsonio import loads
from orchestrator.contract.resolved import ResolvedJob
from tests.harness import plain
from tests.harness.training import (
    STEPS,
    Disturbance,
    TrainingBench,
    TrainingRun,
    assert_same_training,
)
from tests.integration.families.conftest import FAMILIES

pytestmark = [
    pytest.mark.families,
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("default"),
]

MODULES = {"qwen2_vl": 14 + 8 + 2, "qwen2_5_vl": 14 + 10 + 2, "qwen3_vl": 14 + 8 + 4}
"""Linear layers of two language and two vision blocks, and of the mergers."""


def job_of(bench: TrainingBench) -> ResolvedJob:
    """Adapters in every part of the model; a small held-out set."""
    few = bench.data / "few.json"
    few.write_text(json.dumps(json.loads((bench.data / "eval.json").read_text())[:10]))
    job = bench.job(training={"learning_rate": 5e-3})
    return replace(
        job,
        data=replace(job.data, eval=str(few)),
        lora={**job.lora, "target_modules": "llm+vision"},
    )


def answer_of(bench: TrainingBench, capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """What a command of ours answers in JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QVL_STATE_DIR", str(bench.folder / "state"))
        code = cli.main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, out + err
    return json.loads(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_from_end_to_end(
    family: str,
    bench_of: Callable[[str], TrainingBench],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    bench = bench_of(family)
    job = job_of(bench)
    straight = bench.probed(job, [])
    assert straight.finish().state == "SUCCEEDED"
    run = bench.disturbed(job, [Disturbance("micro", 6, "SIGUSR1", [1], 75, 6, micro=1)])
    assert run.finish().state == "SUCCEEDED"
    assert run.verdicts() == [75, 0]
    (stop,) = run.of_attempt(1, "stop_agreed")
    assert (stop["data"]["step"], stop["data"]["micro_batch"]) == (6, 2)
    assert_same_training(run, straight)
    again = {e["rank"]: e["data"] for e in run.of_attempt(2, "reproduced")}
    assert {rank: (d["micro_batches"], d["apart"]) for rank, d in again.items()} == {
        0: (2, 0),
        1: (2, 0),
    }
    assert_modules_are_listed(run, family)
    folder = assert_exported(bench, run, capsys, tmp_path)
    assert_merged(bench, run, capsys, tmp_path)
    assert_answers(bench, run, capsys, folder)


def assert_modules_are_listed(run: TrainingRun, family: str) -> None:
    """The table in the run directory, and its summary among the events of each attempt."""
    table = loads(run.storage.get(layout.MODULES))
    assert (table["family"], len(table["modules"])) == (family, MODULES[family])
    assert sum(row["parameters"] for row in table["modules"]) == table["trainable_parameters"]
    told = run.events("trainable")
    assert len(told) == 2
    assert all(e["data"]["parameters"] == table["trainable_parameters"] for e in told)
    assert "self_attn.q_proj" in told[0]["data"]["summary"]


def assert_exported(
    bench: TrainingBench, run: TrainingRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Path:
    """Plain PEFT reads exactly the trained weights; the card tells the run's story."""
    folder = tmp_path / "exported"
    told = answer_of(bench, capsys, "export", run.run.run_id, str(folder))
    assert (told["step"], told["attempts"], told["preemptions"]) == (STEPS, 2, 1)
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {p.name for p in folder.iterdir()} == files
    assert plain.read_by_peft(folder, run.run.job()) == run.manifest().adapter_digest
    card = (folder / "README.md").read_text()
    manifest = run.manifest()
    for text in (
        "2 attempts, 1 of them ended by a preemption",
        "| 1 | preempted | SIGUSR1 | 6 |",
        "| 2 | done | - | 20 |",
        f"transformers {manifest.facts['version.transformers']}",
        manifest.facts["data.train"],
        f"| {STEPS} | {run.curve()[STEPS].loss:.4f} |",
        f"| 20 | {run.evaluations()[-1][1]:.4f} |",
    ):
        assert text in card, text
    return folder


def assert_merged(
    bench: TrainingBench, run: TrainingRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Merged weights answer like the adapter; they need no PEFT, and are not merged again."""
    import torch
    from transformers import AutoModelForImageTextToText

    folder = tmp_path / "merged"
    told = answer_of(bench, capsys, "merge", run.run.run_id, str(folder))
    assert told["layers"] == told["changed_layers"] == MODULES[bench.folder.name]
    near, far = told["against_adapter"], told["against_training"]
    assert 0 < near["mean"] < 0.05 < far["mean"]
    assert near["same_choice"] > 0.95
    merged = AutoModelForImageTextToText.from_pretrained(folder)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    said = f"{told['layers']} of {told['layers']} adapted layers changed"
    assert said in (folder / "README.md").read_text()


def assert_answers(
    bench: TrainingBench, run: TrainingRun, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """`generate` says what the most likely tokens are, one whole forward pass at a time."""
    picture, question = str(bench.data / "images/1203.png"), "Which digit is this?"
    told = answer_of(
        bench, capsys, "generate", run.run.run_id, picture, question, "--max-new-tokens", "6",
        "--compare",
    )  # fmt: skip
    assert told["answer"] == greedy(run.run.job(), folder, picture, question, 6)
    assert told["answer"] != told["base_answer"]


def greedy(job: ResolvedJob, adapter: Path, picture: str, question: str, tokens: int) -> str:
    """The slow way, without caches."""
    import torch

    from trainer.commands.result import load_trained, model_inputs
    from trainer.vision_language.families.processor import IGNORE
    from trainer.vision_language.formats import Image, Text, Turn
    from trainer.vision_language.media import open_picture

    loaded = load_trained(job, str(adapter), torch.device("cpu"))
    processor = loaded.processor
    turn = Turn("user", (Image(picture), Text(question)))
    encoded = processor.prompt([turn], [open_picture(Path(picture))])
    said: list[int] = []
    while len(said) < tokens:
        longer = replace(
            encoded,
            input_ids=encoded.input_ids + tuple(said),
            labels=encoded.labels + (IGNORE,) * len(said),
        )
        with torch.no_grad():
            out = loaded.model(**model_inputs(processor, longer, torch.device("cpu")))
        best = int(out.logits[0, -1].argmax())
        if best == processor.end_token_id:
            break
        said.append(best)
    return str(processor.tokenizer.decode(said))


def test_a_quantized_base_is_refused(
    bench_of: Callable[[str], TrainingBench], tmp_path: Path
) -> None:
    from orchestrator.errors import UserError
    from trainer.commands.merge import refuse_quantized

    config = json.loads((bench_of("qwen2_5_vl").data / "model/config.json").read_text())
    refuse_quantized(bench_of("qwen2_5_vl").data / "model")
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quantized \(bitsandbytes\)") as caught:
        refuse_quantized(tmp_path)
    assert "bfloat16 base" in str(caught.value.hint)
