"""Every kind of finding: a fault stops or replaces the sample, a warning lets it train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["fault", "warning"]

FAULTS: Mapping[str, str] = {
    # the index file
    "unreadable-index": "the index file cannot be read",
    "empty-index": "the index file has no samples",
    "encoding": "not UTF-8",
    "json": "not JSON (the line is named)",
    "documents": "several JSON documents where one belongs",
    "late-bom": "a byte order mark inside the file, where files were joined",
    "no-object": "a record that is no JSON object",
    "duplicate-key": "one key twice in an object: readers keep only the last",
    # the shape of a sample
    "shape": "neither or both of `conversations` and `messages`",
    "turns": "the list of turns is no list, or empty",
    "turn": "a turn that is no object",
    "value": "a turn without text, or of a wrong type",
    "role": "an unknown role",
    "part": "an unknown content part",
    "empty-turn": "a turn that says nothing",
    "order": "system text not first, or the first turn not the user's",
    "alternation": "two turns of the same side in a row",
    "no-reply": "the assistant says nothing, so there is nothing to learn",
    "assistant-image": "a picture shown by the assistant",
    "video": "videos are not supported",
    "img-tag": "an <img> tag that is open, nested or empty",
    "image-count": "<image> placeholders and listed images differ in number",
    "image-entry": "an entry of `image` or `images` without a path",
    # what the model would see
    "markup": "tokens of the model's markup inside a text, as <|im_start|>",
    "too-long": "longer than the limit, and cannot be cut",
    "sample": "the image processor or the tokenizer refuses it",
    # media
    "address": "a web address or embedded data instead of a file",
    "missing": "no such file, or not a file",
    "outside": "outside the media root, also through `..` or a link",
    "empty-file": "a file without content",
    "no-picture": "not a picture, or one with a side of 0 pixels",
    "broken": "a picture that is cut off or damaged",
    "aspect": "one side more than 200 times the other",
    "bomb": "too many pixels to be decoded safely",
}
WARNINGS: Mapping[str, str] = {
    "bom": "the index begins with a byte order mark, which other tools refuse",
    "duplicate": "the same sample as an earlier one",
    "duplicate-id": "the `id` of an earlier, different sample",
    "cut": "longer than the limit: the end of the text will be cut",
    "unanswered": "the last turn is the user's, nothing is learned from it",
    "box": "a <box> or <ref> that is not well-formed, or outside 0 to 1000",
    "picture-number": "`Picture N:` does not count the pictures",
    "tag-as-text": "<img> or <image> where it is learned as plain text",
    "oversized": "so many pixels that decoding is slow and takes much memory",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one record, or about the whole file."""

    kind: str
    file: str
    reason: str
    record: int | None = None
    """Number of the record, from 0; None = the file as a whole."""
    line: int | None = None
    """Line of the index file, from 1, at which the record begins."""

    @property
    def level(self) -> Level:
        return "fault" if self.kind in FAULTS else "warning"

    def __str__(self) -> str:
        place = self.file if self.record is None else f"{self.file}:{self.record}"
        at = "" if self.line is None else f" (line {self.line})"
        return f"{place}{at}: {self.kind}: {self.reason}"
