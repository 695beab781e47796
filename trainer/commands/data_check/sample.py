"""One record judged: its shape, its pictures, and what the model would see of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from orchestrator.contract.dataset import IMG_TAG, PLACEHOLDER, media_of
from orchestrator.contract.jsonio import canonical
from trainer.commands.data_check.index import Record
from trainer.commands.data_check.kinds import Finding
from trainer.data.dataset import LengthError, kept_length
from trainer.vision_language.families.processor import (
    IGNORE,
    Encoded,
    MarkupError,
    VisionChatProcessor,
)
from trainer.vision_language.formats import ChatSample, DataError, Text, normalise
from trainer.vision_language.media import MediaError, PictureFacts, media_file, picture_facts

_BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_POINTS = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_NUMBERED = re.compile(r"Picture (\d+): *<img>")
_SCALE = 1000
"""Coordinates of the original format are thousandths of the picture's sides."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out about one record; lengths are 0 where it cannot be encoded."""

    record: int
    findings: tuple[Finding, ...] = ()
    tokens: int = 0
    """Of the sequence that is trained on, after the cut."""
    learned: int = 0
    image_tokens: int = 0
    images: tuple[str, ...] = ()
    """Files of its pictures, links followed."""
    digest: str = ""
    """Of the content without `id`: equal samples have equal ones."""
    identity: str | None = None
    """The record's `id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Judges records of one index file.

    limit: longest sequence in tokens; longer ones are cut there
    decode: read every picture whole
    """

    file: str
    processor: VisionChatProcessor
    media_root: Path
    limit: int | None
    decode: bool = False

    def check(self, record: Record) -> Checked:
        """Everything about one record; never raises for what is wrong with it."""
        found: list[Finding] = []

        def add(kind: str, reason: str) -> None:
            found.append(Finding(kind, self.file, reason, record.number, record.line))

        sample = self._sample(record, add)
        named = media_of(record.value) if sample is None else [i.path for i in sample.images]
        names = [name for name in named if "<img>" not in name]  # that is a fault of the tags
        pictures = [self._picture(name, add) for name in names]
        encoded = None
        if sample is not None and all(pictures):
            encoded = self._encode(sample, [facts for _, facts in filter(None, pictures)], add)
        for kind, reason in _warnings(record.value, sample):
            add(kind, reason)
        kept = 0 if encoded is None else self._kept(encoded, add)
        labels = () if encoded is None else encoded.labels[:kept]
        return Checked(
            record=record.number,
            findings=tuple(found),
            tokens=kept,
            learned=sum(label != IGNORE for label in labels),
            image_tokens=0 if encoded is None else sum(b - a - 2 for a, b in encoded.image_spans),
            images=tuple(str(path) for path, _ in filter(None, pictures)),
            digest=_digest(record.value),
            identity=_identity(record.value),
        )

    def _sample(self, record: Record, add: Callable[[str, str], None]) -> ChatSample | None:
        try:
            return normalise(record.value, record.number, file=self.file)
        except DataError as fault:
            add(fault.kind, fault.reason)
            return None

    def _picture(
        self, name: str, add: Callable[[str, str], None]
    ) -> tuple[Path, PictureFacts] | None:
        try:
            path = media_file(self.media_root, name)
            facts = picture_facts(path, decode=self.decode)
        except MediaError as fault:
            add(fault.kind, str(fault))
            return None
        limit = PIL.Image.MAX_IMAGE_PIXELS
        if limit and facts.width * facts.height > limit:
            add("oversized", f"{path}: {facts.width} x {facts.height} pixels")
        return path, facts

    def _encode(
        self, sample: ChatSample, pictures: list[PictureFacts], add: Callable[[str, str], None]
    ) -> Encoded | None:
        try:
            sizes = [self.processor.image_tokens(p.width, p.height) for p in pictures]
            encoded = self.processor.layout(sample.turns, sizes)
        except MarkupError as fault:
            add("markup", str(fault))
            return None
        except ValueError as fault:
            add("sample", str(fault))
            return None
        pads = encoded.input_ids.count(self.processor.image_token_id)
        if pads != sum(sizes):
            add("sample", f"{pads} image tokens for {sum(sizes)} image features")
            return None
        return encoded

    def _kept(self, encoded: Encoded, add: Callable[[str, str], None]) -> int:
        length = len(encoded.input_ids)
        if self.limit is None or length <= self.limit:
            return length
        try:
            kept = kept_length(encoded, self.limit)
        except LengthError as fault:
            add("too-long", str(fault))
            return 0
        lost = sum(label != IGNORE for label in encoded.labels[kept:])
        add("cut", f"{length} tokens, {length - kept} are cut, {lost} of them to be learned")
        return kept


def _warnings(raw: dict[str, Any], sample: ChatSample | None) -> Iterator[tuple[str, str]]:
    if sample is None:
        return
    if sample.turns[-1].role == "user":
        yield "unanswered", "the last turn is the user's"
    texts = [p.text for turn in sample.turns for p in turn.parts if isinstance(p, Text)]
    for text in texts:
        if IMG_TAG.search(text) or PLACEHOLDER in text:
            yield "tag-as-text", f"{text[:60]!r}"
    if "conversations" in raw:
        yield from _markings(texts)
        values = "".join(turn["value"] for turn in raw["conversations"])
        numbers = [int(n) for n in _NUMBERED.findall(values)]
        if numbers != list(range(1, len(numbers) + 1)):
            yield "picture-number", f"the pictures are numbered {numbers}"


def _markings(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Faults of <box> and <ref>, once for each text."""
    for text in texts:
        if any(text.count(f"<{tag}>") != text.count(f"</{tag}>") for tag in ("box", "ref")):
            yield "box", f"a tag that is not closed, or not opened: {text[:60]!r}"
            continue
        for content in _BOX.findall(text):
            points = _POINTS.fullmatch(content.strip())
            if points is None:
                yield "box", f"not (x1,y1),(x2,y2): {content[:60]!r}"
                break
            x1, y1, x2, y2 = map(int, points.groups())
            if max(x2, y2) > _SCALE or x1 > x2 or y1 > y2:
                yield "box", f"not upper left and lower right within 0 to {_SCALE}: {content!r}"
                break


def _digest(value: dict[str, Any]) -> str:
    content = {key: part for key, part in value.items() if key != "id"}
    try:
        data = canonical(content)
    except ValueError:  # NaN or half a character: legal to Python's reader alone
        data = repr(content).encode(errors="backslashreplace")
    return hashlib.sha256(data).hexdigest()


def _identity(value: dict[str, Any]) -> str | None:
    found = value.get("id")
    return str(found) if isinstance(found, str | int) and found != "" else None
