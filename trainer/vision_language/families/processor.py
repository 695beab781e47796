"""Turns and pictures into token ids, label mask and patches; no torchvision needed."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from orchestrator.errors import UserError
from trainer.vision_language.families.base import Family
from trainer.vision_language.formats import Text, Turn

IGNORE = -100
"""Label of a token that is not learned."""

_CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|endoftext|>",
)
"""Tokens with a meaning of their own to the model; none may stand in a text."""


class MarkupError(ValueError):
    """A text that contains tokens of the model's markup."""

    kind = "markup"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as the model sees it; all sequences have the same length.

    `labels` repeats the ids of the assistant's words and of the token that ends each of
    its turns, and is IGNORE elsewhere. `image_spans` are half-open positions, the vision
    start and end tokens included, in the order of the rows of `image_grid_thw`.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    image_spans: tuple[tuple[int, int], ...]
    pixel_values: torch.Tensor | None = None
    """Patches of all images, float [patches, channels x patch volume]."""
    image_grid_thw: torch.Tensor | None = None
    """Patches of each image in time, height and width, int64 [images, 3]."""


class VisionChatProcessor:
    """Tokenizer and image processor of one model, joined by the Qwen chat markup.

    The markup is that of the families' chat templates: `<|im_start|>role`, a newline, the
    parts, `<|im_end|>`, a newline; an image is `<|vision_start|>`, one pad token for each
    merged patch, `<|vision_end|>`. Texts between markup tokens are tokenised in one piece,
    except that a reply is separated from its header, as it is when text is generated.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, family: Family) -> None:
        """Raises UserError when the tokenizer lacks a markup token."""
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.family = family
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in _CONTROL if token not in vocabulary]
        if missing:
            raise UserError(f"the tokenizer has no {', '.join(missing)}: not a {family.name} model")
        self._id: dict[str, int] = {token: vocabulary[token] for token in _CONTROL}
        self._control = frozenset(self._id.values())
        self._merged = int(image_processor.merge_size) ** 2

    @classmethod
    def from_pretrained(cls, folder: str | Path, family: Family) -> VisionChatProcessor:
        """Both parts from a local model folder; UserError when they cannot be read.

        Pictures are prepared by Pillow even where torchvision is installed: the two differ in
        the last grey level, and a resume may find another environment.
        """
        try:
            return cls(
                AutoTokenizer.from_pretrained(str(folder)),
                AutoImageProcessor.from_pretrained(str(folder), backend="pil"),
                family,
            )
        except (OSError, ValueError, ImportError) as fault:
            raise UserError(f"{folder}: tokenizer or image processor: {fault}") from fault

    @property
    def image_token_id(self) -> int:
        """Id of the pad token that stands for one merged patch."""
        return self._id["<|image_pad|>"]

    @property
    def end_token_id(self) -> int:
        """Id that ends a turn."""
        return self._id["<|im_end|>"]

    @property
    def pad_token_id(self) -> int:
        """Id that fills up short sequences (never learned, never attended to)."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both parts the way Transformers reads them."""
        self.tokenizer.save_pretrained(str(folder))
        self.image_processor.save_pretrained(str(folder))

    def encode(self, turns: Sequence[Turn], images: Sequence[PIL.Image.Image]) -> Encoded:
        """Encode whole turns with their pictures, RGB, in order of appearance.

        Raises ValueError for pictures that the image processor refuses and for texts that
        contain markup tokens.
        """
        pixels, grids = self._patches(images)
        pads = [] if grids is None else (grids.prod(dim=1) // self._merged).tolist()
        return replace(self.layout(turns, pads), pixel_values=pixels, image_grid_thw=grids)

    def prompt(self, turns: Sequence[Turn], images: Sequence[PIL.Image.Image]) -> Encoded:
        """Like `encode`, with the head of the reply that is to be generated."""
        encoded = self.encode(turns, images)
        head = (self._id["<|im_start|>"], *self._words("assistant\n"))
        return replace(
            encoded,
            input_ids=encoded.input_ids + head,
            labels=encoded.labels + (IGNORE,) * len(head),
        )

    def layout(self, turns: Sequence[Turn], image_tokens: Sequence[int]) -> Encoded:
        """The same without the pictures, given how many tokens each of them takes.

        Raises MarkupError for texts that contain markup tokens.
        """
        tape = _Tape()
        pads = iter(image_tokens)
        if turns[0].role != "system" and self.family.default_system is not None:
            self._turn(tape, Turn("system", (Text(self.family.default_system),)), pads)
        for turn in turns:
            self._turn(tape, turn, pads)
        return Encoded(tuple(tape.ids), tuple(tape.labels), tuple(tape.spans))

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens that a picture of this size, in pixels, takes.

        Raises ValueError for sizes that the image processor refuses.
        """
        return int(self.image_processor.get_number_of_image_patches(height, width)) // self._merged

    def _patches(
        self, images: Sequence[PIL.Image.Image]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not images:
            return None, None
        batch = self.image_processor(images=list(images), return_tensors="pt")
        return batch["pixel_values"], batch["image_grid_thw"]

    def _turn(self, tape: _Tape, turn: Turn, pads: Any) -> None:
        learn = turn.role == "assistant"
        tape.add([self._id["<|im_start|>"]])
        text = f"{turn.role}\n"
        if learn:
            tape.add(self._words(text))
            text = ""
        for part in turn.parts:
            if isinstance(part, Text):
                text += part.text
                continue
            tape.add(self._words(text))
            tape.image(self._id, next(pads))
            text = ""
        tape.add(self._words(text), learn=learn)
        tape.add([self._id["<|im_end|>"]], learn=learn)
        tape.add(self._words("\n"))

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        found = self._control.intersection(ids)
        if found:
            names = ", ".join(sorted(name for name, i in self._id.items() if i in found))
            raise MarkupError(f"markup of the model inside a text: {names}")
        return ids


class _Tape:
    """Ids, labels and image spans while they are written."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.spans: list[tuple[int, int]] = []

    def add(self, ids: list[int], *, learn: bool = False) -> None:
        self.ids += ids
        self.labels += ids if learn else [IGNORE] * len(ids)

    def image(self, token: dict[str, int], pads: int) -> None:
        first = len(self.ids)
        pad = [token["<|image_pad|>"]] * pads
        self.add([token["<|vision_start|>"], *pad, token["<|vision_end|>"]])
        self.spans.append((first, len(self.ids)))
