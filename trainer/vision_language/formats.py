"""Raw samples of either format, made into one checked shape: roles, texts and images."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from orchestrator.contract.dataset import (
    IMG_TAG,
    MEDIA_KEYS,
    PLACEHOLDER,
    keyed_media,
    part_media,
    reference,
)
from orchestrator.errors import DataFault

Role: TypeAlias = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_VIDEO_KEYS = ("video", "videos")
_IMAGE = re.compile(f"{IMG_TAG.pattern}|({re.escape(PLACEHOLDER)})", IMG_TAG.flags)


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a turn, exactly as the data set has them."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture of a turn; `path` as the data set has it, relative to the media root."""

    path: str


Part: TypeAlias = Text | Image


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: texts and images in order, never two texts in a row."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ChatSample:
    """One checked sample; `index` is its place in the index file, from 0."""

    index: int
    turns: tuple[Turn, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """Pictures of all turns, in order."""
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, Image))


class DataError(DataFault):
    """A fault of one sample: which file, which record (from 0), and what is wrong.

    `kind` is the fault's name in `trainer.kinds`.
    """

    def __init__(self, file: str, record: int, reason: str, kind: str = "sample") -> None:
        super().__init__(f"{file}: record {record}: {reason}")
        self.file = file
        self.record = record
        self.reason = reason
        self.kind = kind

    def __reduce__(self) -> tuple[type[DataError], tuple[str, int, str, str]]:
        """Keep the arguments when a DataLoader worker hands the error over."""
        return DataError, (self.file, self.record, self.reason, self.kind)


class _Fault(Exception):
    """A kind and a reason without their place."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def normalise(sample: Mapping[str, Any], index: int, *, file: str = "<data>") -> ChatSample:
    """The checked form of one raw sample.

    Texts stay verbatim; `<img>` tags and `<image>` placeholders become images. `file` is
    for messages only. Raises DataError for an unknown shape or role, an order of turns
    that cannot be learned from, images and placeholders that do not match, and videos.
    """
    try:
        return ChatSample(index, _checked(_turns(sample)))
    except _Fault as fault:
        raise DataError(file, index, str(fault), fault.kind) from None


def _turns(sample: Mapping[str, Any]) -> tuple[Turn, ...]:
    for key in _VIDEO_KEYS:
        if sample.get(key):
            raise _Fault("video", f"`{key}`: videos are not supported")
    shapes = [key for key in ("conversations", "messages") if key in sample]
    if len(shapes) != 1:
        raise _Fault(
            "shape", "needs either `conversations` or `messages`" + (", not both" * bool(shapes))
        )
    raw = sample[shapes[0]]
    if not isinstance(raw, list) or not raw:
        raise _Fault("turns", f"`{shapes[0]}` must be a list of turns that is not empty")
    _check_keyed(sample)
    media = deque(keyed_media(sample))
    read = _conversation_turn if shapes[0] == "conversations" else _message_turn
    turns = tuple(_at(number, turn, read, media) for number, turn in enumerate(raw))
    if media:
        raise _Fault(
            "image-count", f"{len(media)} more images listed than {PLACEHOLDER} placeholders"
        )
    return turns


def _check_keyed(sample: Mapping[str, Any]) -> None:
    """Entries of `image` and `images` that name nothing would shift all later ones."""
    for key in MEDIA_KEYS:
        value = sample.get(key)
        entries = value if isinstance(value, list) else [value] if value else []
        for number, entry in enumerate(entries):
            if reference(entry) is None:
                raise _Fault("image-entry", f"`{key}` entry {number} names no path: {entry!r:.60}")


def _at(number: int, raw: object, read: Any, media: deque[str]) -> Turn:
    if not isinstance(raw, Mapping):
        raise _Fault("turn", f"turn {number}: {type(raw).__name__} instead of an object")
    try:
        turn: Turn = read(raw, media)
    except _Fault as fault:
        raise _Fault(fault.kind, f"turn {number}: {fault}") from None
    return turn


def _conversation_turn(raw: Mapping[str, Any], media: deque[str]) -> Turn:
    value = raw.get("value")
    if not isinstance(value, str):
        raise _Fault("value", "`value` must be a text")
    return Turn(_role(raw.get("from"), "from"), _joined(_split(value, media, tags=True)))


def _message_turn(raw: Mapping[str, Any], media: deque[str]) -> Turn:
    content = raw.get("content")
    if isinstance(content, str):
        parts = _joined(_split(content, media, tags=False))
    elif isinstance(content, list):
        parts = _joined(_content_part(part, media) for part in content)
    else:
        raise _Fault("value", "`content` must be a text or a list of parts")
    return Turn(_role(raw.get("role"), "role"), parts)


def _role(value: object, key: str) -> Role:
    role = _ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise _Fault("role", f"`{key}` is {value!r}, known are {', '.join(_ROLES)}")
    return role


def _content_part(part: object, media: deque[str]) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if isinstance(part, Mapping) and kind in ("image", "image_url"):
        return Image(part_media(part) or _next(media))
    raise _Fault("part", f"content part of type {kind!r}, known are text, image, image_url")


def _split(value: str, media: deque[str], *, tags: bool) -> Iterator[Part]:
    """Texts and images of `value`; `tags`: whether `<img>` tags count."""
    end = 0
    for match in _IMAGE.finditer(value):
        if match.group(2) is None and not tags:
            continue
        yield Text(value[end : match.start()])
        yield Image(_next(media) if match.group(2) else _tagged(match.group(1)))
        end = match.end()
    rest = value[end:]
    if tags and ("<img>" in rest or "</img>" in rest):
        raise _Fault("img-tag", "an <img> tag that is not closed, or closed but not opened")
    yield Text(rest)


def _tagged(value: str) -> str:
    path = reference(value)
    if path is None or "<img>" in path:
        raise _Fault("img-tag", f"no path in <img>{value}</img>")
    return path


def _next(media: deque[str]) -> str:
    if not media:
        raise _Fault("image-count", f"more {PLACEHOLDER} placeholders than images listed")
    return media.popleft()


def _joined(parts: Iterator[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one, empty ones left out."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + part.text)
        elif isinstance(part, Image) or part.text:
            joined.append(part)
    return tuple(joined)


def _is_unicode(text: str) -> bool:
    """False for texts with half a surrogate pair, which JSON can write and UTF-8 cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _checked(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns, if a system text, users and assistants come in a learnable order."""
    for number, turn in enumerate(turns):
        if not any(isinstance(p, Image) or p.text.strip() for p in turn.parts):
            raise _Fault("empty-turn", f"turn {number}: it is empty")
        if any(isinstance(p, Text) and not _is_unicode(p.text) for p in turn.parts):
            raise _Fault("value", f"turn {number}: half of a surrogate pair in the text")
        if turn.role == "system" and number:
            raise _Fault("order", f"turn {number}: a system text may only come first")
        if turn.role == "assistant" and any(isinstance(p, Image) for p in turn.parts):
            raise _Fault("assistant-image", f"turn {number}: the assistant cannot show an image")
    roles = [turn.role for turn in turns if turn.role != "system"]
    if roles[:1] != ["user"]:
        raise _Fault("order", "the first turn must be the user's")
    if "assistant" not in roles:
        raise _Fault("no-reply", "the assistant says nothing, so there is nothing to learn")
    for before, after in pairwise(roles):
        if before == after:
            raise _Fault("alternation", f"two turns of the {after} in a row: join them to one")
    return turns
