"""The README.md of an exported adapter: what it is and how it was trained. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from orchestrator.cli.escape import line as plain
from orchestrator.cli.services.result import Result
from orchestrator.contract.event import StepMetrics

_ROWS = 12
"""Steps of the curve that are shown."""
_FACTS = ("data.train", "data.eval", "data.media", "model.digest", "model.revision", "code.digest")


def model_card(result: Result, base_type: str | None, *, merged: str | None = None) -> str:
    """Markdown with the YAML head that model hubs read.

    base_type: `model_type` of the base, if it is known
    merged: for merged weights, a paragraph on what merging changed
    """
    lines = [*_head(result, merged), *_title(result, base_type, merged)]
    for part in (_attempts, _settings, _loss, _facts):
        lines += ["", *part(result)]
    return "\n".join(lines) + "\n"


def _head(result: Result, merged: str | None) -> Iterator[str]:
    yield "---"
    yield f"base_model: {json.dumps(result.job.model.path)}"
    yield f"library_name: {'transformers' if merged else 'peft'}"
    yield "pipeline_tag: image-text-to-text"
    tags = ["lora", "qvl-orchestrate"]
    if result.job.quantization.get("load_in_4bit"):
        tags.insert(1, "qlora")
    yield f"tags: [{', '.join(tags)}]"
    yield "---"


def _title(result: Result, base_type: str | None, merged: str | None) -> Iterator[str]:
    yield ""
    yield f"# {result.job.name}"
    yield ""
    kind = "Merged weights" if merged else "A LoRA adapter"
    family = f" ({base_type})" if base_type else ""
    yield (
        f"{kind} for {_code(result.job.model.path)}{family}, step {result.commit.step} of run "
        f"{_code(result.run_id)}, made with qvl-orchestrate."
    )
    if not result.finished:
        yield "The run was not finished when this was exported."
    yield ""
    if merged:
        yield merged
        return
    yield "```python"
    yield "from peft import PeftModel"
    yield "from transformers import AutoModelForImageTextToText"
    yield ""
    yield f"base = AutoModelForImageTextToText.from_pretrained({result.job.model.path!r})"
    yield 'model = PeftModel.from_pretrained(base, "this folder")'
    yield "```"


def _attempts(result: Result) -> Iterator[str]:
    count = len(result.attempts)
    yield "## How it was trained"
    yield ""
    yield (
        f"{count} attempt{'s' * (count != 1)}, {result.preemptions} of them ended by a preemption. "
        "Each went on from the last committed step of the one before."
    )
    yield ""
    yield "| attempt | ended | notice | newest committed step |"
    yield "|---:|---|---|---:|"
    for one in result.attempts:
        step = "-" if one.committed_step is None else str(one.committed_step)
        yield f"| {one.number} | {one.reason or 'runs'} | {plain(one.notice or '-')} | {step} |"


def _settings(result: Result) -> Iterator[str]:
    job, manifest = result.job, result.manifest
    yield "## Settings"
    yield ""
    processes = job.resources.world_size
    yield (
        f"- {result.commit.step} optimizer steps of {manifest.plan.global_batch} samples "
        f"({manifest.plan.micro} x {manifest.plan.accumulation} x {processes} processes), "
        f"{manifest.samples_seen:,} samples in all"
    )
    yield f"- LoRA: {_code(_short(dict(job.lora)))}"
    yield f"- quantization: {_code(_short(dict(job.quantization))) if job.quantization else 'none'}"
    yield f"- DeepSpeed ZeRO-{job.zero_stage}, seed {job.training.get('seed')}"
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay")
    chosen = {name: job.training[name] for name in names if name in job.training}
    yield f"- {_code(_short(chosen))}"
    if result.trainable:
        yield (
            f"- {result.trainable['parameters']:,} of {result.trainable['total']:,} parameters "
            f"trained, in {result.trainable['modules']} modules"
        )
    for which, count in sorted(result.replaced.items()):
        yield f"- {count} broken samples of the {which} data were replaced by others"


def _loss(result: Result) -> Iterator[str]:
    yield "## Loss"
    yield ""
    yield "| step | training loss | learning rate | attempt |"
    yield "|---:|---:|---:|---:|"
    for row in _spread(result.curve):
        loss = row.loss_hex if row.loss is None else f"{row.loss:.4f}"
        yield f"| {row.step} | {loss} | {row.learning_rate:.3e} | {row.attempt} |"
    if result.evaluations:
        yield ""
        yield "| step | loss on held-out data |"
        yield "|---:|---:|"
        yield from (f"| {step} | {loss:.4f} |" for step, loss in result.evaluations)


def _facts(result: Result) -> Iterator[str]:
    facts = result.manifest.facts
    yield "## Fingerprints and versions"
    yield ""
    yield f"- adapter: sha256 {_code(result.commit.adapter_sha256)}"
    for name in _FACTS:
        if facts.get(name) is not None:
            yield f"- {name}: {_code(str(facts[name]))}"
    versions = {
        "python" if name == "python.version" else name.split(".", 1)[1]: value
        for name, value in sorted(facts.items())
        if name.startswith(("version.", "package.", "python."))
    }
    yield f"- versions: {', '.join(f'{name} {value}' for name, value in versions.items())}"


def _spread(curve: Sequence[StepMetrics]) -> list[StepMetrics]:
    """First, last, and some between, at even distances."""
    if len(curve) <= _ROWS:
        return list(curve)
    last = len(curve) - 1
    return [curve[i * last // (_ROWS - 1)] for i in range(_ROWS)]


def _short(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _code(text: str) -> str:
    return "`" + plain(text).replace("`", "'") + "`"
