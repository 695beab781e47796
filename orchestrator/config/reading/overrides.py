"""`--set key=value`: single values of a job file given on the command line. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from orchestrator.config.faults import Path, Place
from orchestrator.config.reading.document import Document, parse
from orchestrator.errors import JobFileError

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def apply(document: Document, overrides: Sequence[str]) -> Document:
    """The document with each `dotted.key=value` put in, later ones winning.

    The value is YAML (`training.optim=sgd`, `code=[a.py]`, nothing after `=` is null). In
    faults the override is the place; its value is not repeated, for it may be a secret.
    """
    for text in overrides:
        document = _apply_one(document, text)
    return document


def _apply_one(document: Document, text: str) -> Document:
    key, mark, value = text.partition("=")
    key = key.strip()
    place = Place(f"--set {key}")
    if not mark or not _KEY.fullmatch(key):
        raise JobFileError(
            "is not an override",
            file=f"--set {key[:60]}",
            hint="write dotted.key=value, for example training.max_steps=100",
        )
    path: Path = tuple(key.split("."))
    given = _value(value, place.file)
    data = copy.deepcopy(document.data)
    _insert(data, path, given.data, place)
    places = {p: at for p, at in document.places.items() if p[: len(path)] != path}
    written = {p: raw for p, raw in document.written.items() if p[: len(path)] != path}
    places.update({(*path, *p): place for p in given.places})
    written.update({(*path, *p): raw for p, raw in given.written.items()})
    return Document(data, places, written)


def _value(value: str, file: str) -> Document:
    if not value.strip():
        return Document(None, {(): Place(file)})
    try:
        return parse(value, file)
    except JobFileError as fault:
        raise JobFileError("the value is not YAML", file=file, hint=fault.hint) from None


def _insert(data: Any, path: Path, value: Any, place: Place) -> None:
    for i, part in enumerate(path):
        if not isinstance(data, dict):
            raise JobFileError(
                f"{'.'.join(map(str, path[:i])) or 'the file'} is not a block of fields",
                file=place.file,
                hint="set the whole block instead",
            )
        if i == len(path) - 1:
            data[part] = value
        else:
            if data.get(part) is None:
                data[part] = {}
            data = data[part]
