"""YAML as plain data, with the line of every value.

The scalars are those of YAML 1.2's core schema: `1e-3` is a number, `no` and `12:30:00`
are text. Tags, merge keys, duplicate keys and further documents are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, NoReturn

import yaml

from orchestrator.config.faults import Path, Place, dotted
from orchestrator.contract.regular import open_regular
from orchestrator.errors import JobFileError

MAX_BYTES = 256 * 1024
"""Largest file that is read."""
MAX_VALUES = 20_000
"""Most values of one document, aliases counted each time they are used."""
MAX_DEPTH = 40
"""Deepest nesting."""

_TAG = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: plain data, the place of each value, and scalars as they were written."""

    data: Any
    places: Mapping[Path, Place]
    written: Mapping[Path, str] = field(default_factory=dict)


def parse(source: bytes | str, file: str) -> Document:
    """Parse one YAML document.

    `file` names the source in errors. Every fault is a JobFileError with its line. An empty
    document is None.
    """
    text = _decode(source, file)
    node = _compose(text, file)
    if node is None:
        return Document(None, {(): Place(file)})
    builder = _Builder(file)
    data = builder.build(node, ())
    return Document(data, builder.places, builder.written)


def read_small(path: FilePath, shown: str, hint: str | None = None) -> bytes:
    """Content of a configuration file, one byte more than MAX_BYTES at most.

    Raises JobFileError naming the file as `shown`.
    """
    try:
        with open_regular(path) as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobFileError("no such file", file=shown, hint=hint) from None
    except (OSError, ValueError) as fault:
        said = getattr(fault, "strerror", None) or str(fault)
        raise JobFileError(f"cannot be read: {said}", file=shown) from None


def _decode(source: bytes | str, file: str) -> str:
    size = len(source)
    if size > MAX_BYTES:
        raise JobFileError(
            f"{size} bytes are too many for a file of settings (at most {MAX_BYTES})", file=file
        )
    if isinstance(source, str):
        return source
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = source[: fault.start].count(b"\n") + 1
        raise JobFileError("not UTF-8 text", file=file, line=line) from None


class _Loader(yaml.SafeLoader):
    """Composes nodes only; scalars are left to `_Builder`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        said = ", ".join(str(part) for part in (fault.context, fault.problem) if part)
        hint = "indent with blanks, not tabs" if r"'\t'" in said else None
        raise JobFileError(
            f"not YAML: {said}", file=file, line=mark.line + 1 if mark else None, hint=hint
        ) from None
    except yaml.reader.ReaderError as fault:
        line = text[: fault.position].count("\n") + 1
        code = fault.character if isinstance(fault.character, int) else ord(fault.character)
        raise JobFileError(
            f"the character U+{code:04X} is not allowed", file=file, line=line
        ) from None
    except yaml.YAMLError as fault:
        raise JobFileError(f"not YAML: {fault}", file=file) from None
    except RecursionError:
        raise JobFileError("nested too deeply", file=file) from None
    except (ValueError, OverflowError) as fault:
        raise JobFileError(f"not YAML: {fault}", file=file) from None


class _Builder:
    """Turns nodes into plain data and remembers the places."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: dict[Path, Place] = {}
        self.written: dict[Path, str] = {}
        self._count = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:
            self._refuse(node, path, "too many values or nested too deeply (check the aliases)")
        self.places.setdefault(path, Place(self.file, node.start_mark.line + 1))
        if isinstance(node, yaml.ScalarNode):
            value = self._scalar(node, path)
            if isinstance(value, bool | int | float):
                self.written[path] = node.value
            return value
        if id(node) in self._open:
            self._refuse(node, path, "an alias contains itself")
        self._open.add(id(node))
        try:
            return self._collection(node, path)
        finally:
            self._open.discard(id(node))

    def _collection(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return dict(self._pairs(node, path))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._refuse(node, path, f"the tag {_short(node.tag)} is not allowed")

    def _pairs(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                self._refuse(key, path, "a key must be plain text")
            name = self._text(key, path)
            if name == "<<" and key.style is None:
                self._refuse(key, path, "merge keys (<<) are not allowed: write the fields out")
            if name in seen:
                self._refuse(
                    key,
                    (*path, name),
                    f"given twice, first in line {seen[name]}",
                    hint="remove one of them",
                )
            seen[name] = line
            self.places[(*path, name)] = Place(self.file, line)
            yield name, self.build(value, (*path, name))

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        plain = node.style is None and node.tag == _TAG + "str"
        text = self._text(node, path)
        if not plain:
            if node.tag not in (_TAG + "str", "!"):
                self._refuse(node, path, f"the tag {_short(node.tag)} is not allowed")
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        try:
            return _number(text)
        except ValueError:
            self._refuse(node, path, "the number is out of range")

    def _text(self, node: yaml.ScalarNode, path: Path) -> str:
        text = str(node.value)
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            self._refuse(node, path, "the text contains a character that is not allowed")
        return text

    def _refuse(
        self, node: yaml.Node, path: Path, message: str, hint: str | None = None
    ) -> NoReturn:
        raise JobFileError(
            message,
            file=self.file,
            line=node.start_mark.line + 1,
            path=dotted(path) or None,
            hint=hint,
        )


def _number(text: str) -> int | float | str:
    """The number that `text` spells, else the text. ValueError: it does not fit."""
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value
    return text


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")
