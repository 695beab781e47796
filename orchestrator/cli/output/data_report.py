"""The report of `data check` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.cli.common import out
from orchestrator.cli.output.table import size

SHOWN = 50
"""Findings that are printed unless all are asked for."""
_BAR = 40


def print_report(report: Mapping[str, Any], *, show_all: bool) -> None:
    """Everything but the single numbers that only programs want."""
    for line in _lines(report, show_all):
        out(line)


def _lines(report: Mapping[str, Any], show_all: bool) -> Iterator[str]:
    for file in report["files"]:
        yield from _file(file)
    if report["memory"]:
        yield from _memory(report["memory"])
    if report["sample"]:
        yield from _sample(report["sample"])
    yield from _findings(report["findings"], show_all)
    yield from _counts(report["counts"])


def _file(file: Mapping[str, Any]) -> Iterator[str]:
    yield str(file["file"])
    yield (
        f"  {file['records']:,} records ({file['faulty_records']:,} with faults, "
        f"{file['text_only']:,} without a picture), {file['distinct_images']:,} pictures"
    )
    lengths = file["lengths"]
    if not lengths["histogram"]:
        return
    yield (
        f"  {file['tokens']:,} tokens, {file['image_tokens']:,} of pictures, "
        f"{file['learned_tokens']:,} learned"
    )
    yield (
        f"  length in tokens: {lengths['min']} to {lengths['max']}, median {lengths['median']}, "
        f"95 % up to {lengths['p95']}; record {file['longest_record']} is the longest"
    )
    most = max(count for _, _, count in lengths["histogram"])
    for low, high, count in lengths["histogram"]:
        yield f"  {low:>8} to {high - 1:<8} {'#' * -(-_BAR * count // most):<{_BAR}} {count:,}"


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"largest micro-batch ({memory['micro_batch']} samples, "
        f"{memory['tokens_with_padding']:,} tokens), estimated memory on one GPU: "
        f"{size(memory['total_bytes'])}"
    )
    parts = ("weights", "adapter", "activations", "logits")
    yield "  " + ", ".join(f"{part} {size(memory[f'{part}_bytes'])}" for part in parts)


def _sample(sample: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"one sample as the model sees it (record {sample['record']}, {sample['tokens']} tokens; "
        "+ is learned):"
    )
    for run in sample["runs"]:
        sign = "+" if run["learned"] else " "
        repeated = f"  x {run['tokens']}" if len(run["ids"]) < run["tokens"] else ""
        for number, text in enumerate(run["text"].split("\n")):
            if text or number:
                yield f"  {sign} {text}{repeated}"


def _findings(findings: Sequence[Mapping[str, Any]], show_all: bool) -> Iterator[str]:
    ordered = sorted(findings, key=lambda f: f["level"] != "fault")
    shown = ordered if show_all else ordered[:SHOWN]
    for found in shown:
        place = found["file"] if found["record"] is None else f"{found['file']}:{found['record']}"
        at = "" if found["line"] is None else f" (line {found['line']})"
        yield (f"{found['level']}: {place}{at}: {found['kind']}: {found['reason']}")
    if len(shown) < len(ordered):
        yield f"... and {len(ordered) - len(shown):,} more: --all"


def _counts(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for level in ("faults", "warnings"):
        found = counts[level]
        named = ", ".join(f"{kind} {number:,}" for kind, number in found.items())
        yield f"{level}: {sum(found.values()):,}" + (f" ({named})" if named else "")
