"""Index files of a data set: reading them, and which media a sample names.

A sample is one JSON object in one of two shapes:

* `conversations`: a list of `{"from", "value"}`. Images stand in the text as
  `<img>path</img>` (the Qwen-VL fine-tuning format), or as `<image>` placeholders that
  take their paths, in order, from the sample's `image` or `images`.
* `messages`: a list of `{"role", "content"}`, where the content is a text (placeholders
  as above) or a list of parts of type `text`, `image` or `image_url`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.contract.jsonio import MalformedJson

IMG_TAG = re.compile(r"<img>(.*?)</img>", re.DOTALL)
"""An image inside a text of `conversations`; group 1 is its path."""
PLACEHOLDER = "<image>"
"""Stands in a text for the next path of `image` or `images`."""
MEDIA_KEYS = ("image", "images")
"""Keys of a sample that list the paths of its placeholders."""


def read_index(data: bytes) -> list[dict[str, Any]]:
    """Samples of an index file: one JSON array of objects, or JSONL (blank lines skipped).

    Raises MalformedJson (a ValueError) naming the record (from 0) of an array, or the line
    (from 1) of JSONL or of a syntax error.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise MalformedJson(f"line {line}: not UTF-8 ({fault.reason})") from None
    if text.lstrip()[:1] == "[":
        return _read_array(text)
    return [_read_line(line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def media_of(sample: Mapping[str, Any]) -> tuple[str, ...]:
    """Media paths that a sample names, as written (files, links or addresses).

    First those of its `image` and `images`, then those inside its turns, in order. What
    has not the expected shape names nothing: judging a sample is not done here.
    """
    return tuple(_media(sample))


def keyed_media(sample: Mapping[str, Any]) -> list[str]:
    """Paths of the sample's `image` and `images`, in order; each may be one path or a list.

    Entries that are neither a path nor an object with one are left out.
    """
    found = []
    for key in MEDIA_KEYS:
        value = sample.get(key)
        for entry in value if isinstance(value, list) else [value]:
            path = reference(entry)
            if path is not None:
                found.append(path)
    return found


def part_media(part: Mapping[str, Any]) -> str | None:
    """Path of one content part of type `image` or `image_url`; None when it names none."""
    if part.get("type") not in ("image", "image_url"):
        return None
    for key in ("image", "image_url", "url", "path"):
        path = reference(part.get(key))
        if path is not None:
            return path
    return None


def reference(value: object) -> str | None:
    """A path given as a text, or as an object with `path`, `url` or `image`; else None."""
    if isinstance(value, str):
        return value.removeprefix("file://").strip() or None
    if isinstance(value, Mapping):
        for key in ("path", "url", "image"):
            if isinstance(value.get(key), str):
                return reference(value[key])
    return None


def _media(sample: Mapping[str, Any]) -> Iterator[str]:
    yield from keyed_media(sample)
    for turn in _list(sample.get("conversations")):
        value = turn.get("value") if isinstance(turn, Mapping) else None
        if isinstance(value, str):
            yield from filter(None, map(reference, IMG_TAG.findall(value)))
    for message in _list(sample.get("messages")):
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in _list(content):
            path = part_media(part) if isinstance(part, Mapping) else None
            if path is not None:
                yield path


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_array(text: str) -> list[dict[str, Any]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise MalformedJson(f"not a JSON array: {fault}") from None
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise MalformedJson(f"record {number}: {type(record).__name__} instead of an object")
    return list(records)


def _read_line(text: str, line: int) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise MalformedJson(f"line {line}: not JSON: {fault}") from None
    if not isinstance(record, dict):
        raise MalformedJson(f"line {line}: {type(record).__name__} instead of an object")
    return record
