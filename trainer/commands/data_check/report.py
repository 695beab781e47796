"""The answer of `data check`: counts, findings, lengths, memory, one sample to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer.commands.data_check.kinds import FAULTS, WARNINGS, Finding
from trainer.commands.data_check.memory import Shapes, estimate
from trainer.commands.data_check.request import Request
from trainer.commands.data_check.sample import Checked

_BINS = 12


def file_report(
    file: str, records: int, checked: Sequence[Checked], findings: Sequence[Finding]
) -> dict[str, Any]:
    """One index file. `records` counts those that could be read."""
    lengths = sorted(one.tokens for one in checked if one.tokens)
    faulty = {f.record for f in findings if f.level == "fault" and f.record is not None}
    longest = max(checked, key=lambda one: one.tokens, default=None)
    return {
        "file": file,
        "records": records,
        "faulty_records": len(faulty),
        "text_only": sum(1 for one in checked if one.tokens and not one.images),
        "images": sum(len(one.images) for one in checked),
        "distinct_images": len({image for one in checked for image in one.images}),
        "tokens": sum(lengths),
        "image_tokens": sum(one.image_tokens for one in checked),
        "learned_tokens": sum(one.learned for one in checked),
        "lengths": _lengths(lengths),
        "longest_record": longest.record if longest is not None and longest.tokens else None,
    }


def counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """Findings of each kind, faults and warnings apart."""
    tally = Counter(f.kind for f in findings)
    return {
        "faults": {kind: tally[kind] for kind in FAULTS if tally[kind]},
        "warnings": {kind: tally[kind] for kind in WARNINGS if tally[kind]},
    }


def memory_report(
    shapes: Shapes, request: Request, checked: Sequence[Checked]
) -> dict[str, Any] | None:
    """The micro-batch of the longest samples; None if there are none."""
    longest = sorted(checked, key=lambda one: (-one.tokens, one.record))[: request.micro]
    longest = [one for one in longest if one.tokens]
    if not longest:
        return None
    tokens = len(longest) * longest[0].tokens
    found = estimate(
        shapes,
        tokens=tokens,
        quantized=request.quantized,
        checkpointing=request.checkpointing,
        lora_rank=request.lora_rank,
    )
    return {
        "micro_batch": request.micro,
        "records": [one.record for one in longest],
        "tokens_with_padding": tokens,
        "weights_bytes": found.weights,
        "adapter_bytes": found.adapter,
        "activations_bytes": found.activations,
        "logits_bytes": found.logits,
        "total_bytes": found.total,
    }


def _lengths(lengths: list[int]) -> dict[str, Any]:
    """Smallest, middle, largest, and a histogram of `[from, up to and without, samples]`."""
    if not lengths:
        return {"histogram": []}
    low, high = lengths[0], lengths[-1]
    width = max(1, -(-(high - low + 1) // _BINS))
    tally = Counter((length - low) // width for length in lengths)
    bins = range((high - low) // width + 1)
    return {
        "min": low,
        "median": lengths[len(lengths) // 2],
        "p95": lengths[min(len(lengths) - 1, len(lengths) * 95 // 100)],
        "max": high,
        "histogram": [[low + b * width, low + (b + 1) * width, tally[b]] for b in bins],
    }
