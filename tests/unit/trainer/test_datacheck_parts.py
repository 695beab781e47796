"""The estimate of memory, the rendered sample, and repetitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


def seven_billion() -> Any:
    """The shapes of Qwen2.5-VL 7B."""
    from trainer.commands.data_check.memory import Shapes

    return Shapes(
        hidden=3584,
        layers=28,
        vocabulary=152_064,
        linear=7_200_000_000,
        other=1_090_000_000,
        max_positions=128_000,
    )


def test_shapes_come_from_headers_alone(tiny: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    from trainer.commands.data_check.memory import read_shapes

    folder = tiny("qwen2_5_vl")
    shapes = read_shapes(folder)
    weights = load_file(folder / "model.safetensors")
    assert shapes.linear + shapes.other == sum(w.numel() for w in weights.values())
    assert (shapes.hidden, shapes.layers, shapes.vocabulary) == (64, 2, 448)
    assert shapes.max_positions == 2048
    assert shapes.linear > 0.5 * shapes.other


def test_the_estimate_of_a_real_model_is_plausible() -> None:
    from trainer.commands.data_check.memory import estimate

    def of(tokens: int, **settings: bool) -> Any:
        chosen = {"quantized": True, "checkpointing": True, **settings}
        return estimate(seven_billion(), tokens=tokens, lora_rank=16, **chosen)

    gb = 1e9
    assert 5 * gb < of(1).weights < 7 * gb
    assert of(1, quantized=False).weights == pytest.approx(16.6 * gb, rel=0.01)
    assert 0.5 * gb < of(1).adapter < 1 * gb  # 45 M weights, as PEFT counts 40.4 M
    assert of(4096).logits == 4096 * 152_064 * 10
    assert of(4096, checkpointing=False).activations > 10 * of(4096).activations
    assert of(8192).total > of(4096).total > of(1).total


def test_a_sample_is_rendered_in_runs(tiny: Callable[[str], Path]) -> None:
    from trainer.commands.data_check.render import rendered
    from trainer.vision_language.families import family_of
    from trainer.vision_language.families.processor import VisionChatProcessor
    from trainer.vision_language.formats import Image, Text, Turn

    folder = tiny("qwen3_vl")
    processor = VisionChatProcessor.from_pretrained(folder, family_of(folder))
    turns = (
        Turn("user", (Image("a"), Image("b"), Text("Same?"))),
        Turn("assistant", (Text("no"),)),
    )
    encoded = processor.layout(turns, [3, 5])
    runs = rendered(processor, encoded, len(encoded.input_ids))
    assert [(r["text"], r["tokens"]) for r in runs if "pad" in r["text"]] == [
        ("<|image_pad|>", 3),
        ("<|image_pad|>", 5),
    ]
    assert [r["text"] for r in runs if r["learned"]] == ["no<|im_end|>"]
    assert sum(r["tokens"] for r in runs) == len(encoded.input_ids)
    cut = rendered(processor, encoded, 10)
    assert sum(r["tokens"] for r in cut) == 10


def test_repetitions_name_the_first() -> None:
    from trainer.commands.data_check.sample import Checked
    from trainer.commands.data_check.scan import repetitions

    checked = [
        Checked(record=0, digest="a", identity="x"),
        Checked(record=1, digest="b", identity="x"),
        Checked(record=4, digest="a", identity="x"),
        Checked(record=7, digest="c"),
        Checked(record=9, digest="a"),
    ]
    found = [(f.kind, f.record, f.reason) for f in repetitions("f", checked)]
    assert found == [
        ("duplicate-id", 1, "`id` 'x' is that of record 0"),
        ("duplicate", 4, "the same as record 0"),
        ("duplicate", 9, "the same as record 0"),
    ]


def test_every_kind_that_is_raised_is_documented() -> None:
    """In the table, and in docs/data.md."""
    import re

    from trainer.commands.data_check.kinds import FAULTS, WARNINGS

    root = Path(__file__).parents[3]
    text = "".join(
        p.read_text()
        for p in (
            *(root / "trainer/commands/data_check").glob("*.py"),
            root / "trainer/vision_language/formats.py",
            root / "trainer/vision_language/media.py",
        )
        if p.name != "kinds.py"
    )  # fmt: skip
    raised = set(re.findall(r'(?:_Fault|MediaError|add)\(\s*"([a-z-]+)"', text))
    raised |= set(re.findall(r'yield "([a-z-]+)",', text))
    assert len(raised) > 30
    assert raised <= set(FAULTS) | set(WARNINGS)
    documented = set(re.findall(r"`([a-z-]+)`", (root / "docs/data.md").read_text()))
    assert set(FAULTS) | set(WARNINGS) <= documented
