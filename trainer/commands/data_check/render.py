"""One sample as the model sees it: tokens, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from trainer.vision_language.families.processor import IGNORE, Encoded, VisionChatProcessor


def rendered(processor: VisionChatProcessor, encoded: Encoded, kept: int) -> list[dict[str, Any]]:
    """Runs of tokens alike in mask: `text`, `tokens`, `learned`.

    A row of image tokens is one run; its `text` names the token once.
    """
    return [
        {
            "text": _text(processor, ids),
            "tokens": len(ids),
            "learned": learned,
            "ids": ids[:1] if image else ids,
        }
        for (learned, image), ids in _runs(processor, encoded, kept)
    ]


def _runs(
    processor: VisionChatProcessor, encoded: Encoded, kept: int
) -> Iterator[tuple[tuple[bool, bool], list[int]]]:
    pairs = zip(encoded.input_ids[:kept], encoded.labels[:kept], strict=True)
    pad = processor.image_token_id
    for key, group in groupby(pairs, lambda pair: (pair[1] != IGNORE, pair[0] == pad)):
        yield key, [token for token, _ in group]


def _text(processor: VisionChatProcessor, ids: list[int]) -> str:
    shown = ids[:1] if ids[0] == processor.image_token_id else ids
    return str(processor.tokenizer.decode(shown))
