"""Pictures on disk: where they may lie, what a header tells, and reading them whole."""

from __future__ import annotations

import errno
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import PIL.Image
import PIL.ImageOps

from orchestrator.contract.regular import open_regular
from orchestrator.errors import StorageError

T = TypeVar("T")

MAX_ASPECT = 200
"""Longest side over shortest; the image processors of all families refuse more."""

_LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.EINVAL),
    }
)
"""What a file system will say again: a fault of the data, not of the moment."""
_PAUSES_S = (0.2, 1.0, 4.0)
_DECODING = (
    *(OSError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError),
    *(EOFError, struct.error, zlib.error, PIL.Image.DecompressionBombError),
)
"""Whatever Pillow's readers raise for bytes that are no picture."""
_JPEG_END = b"\xff\xd9"


class MediaError(ValueError):
    """A medium that cannot be used; `kind` as in `trainer.commands.data_check.kinds`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What the header says of a picture."""

    width: int
    height: int
    size_bytes: int


def media_file(root: Path, name: str) -> Path:
    """The file that a sample's media path means, with every link followed.

    `root` is the resolved media root. Raises MediaError for web addresses and embedded
    data, for what is no file, and for what lies outside the root after following links.
    """
    if "://" in name or name.startswith("data:"):
        raise MediaError(
            "address", f"{name[:80]}: only files are read, no addresses and no embedded data"
        )
    try:
        path = _patient(lambda: (root / name).resolve(strict=True))
    except (OSError, RuntimeError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise MediaError("missing", f"{name}: {reason}") from None
    if not path.is_relative_to(root):
        raise MediaError("outside", f"{name}: lies outside the media root {root}")
    if not path.is_file():
        raise MediaError("missing", f"{name}: not a file")
    return path


def open_picture(path: Path) -> PIL.Image.Image:
    """The picture in RGB, turned upright as its EXIF data says.

    Raises MediaError (naming the file) when it is no picture, is cut off, or is too large
    to be decoded safely.
    """

    def read() -> PIL.Image.Image:
        with open_regular(path) as file, PIL.Image.open(file) as picture:
            return PIL.ImageOps.exif_transpose(picture).convert("RGB")

    return _judged(path, read)


def picture_facts(path: Path, *, decode: bool = False) -> PictureFacts:
    """Size of a picture, after a look at whether it is one and is complete.

    Reads the header, the end of a JPEG and the checksums of a PNG; other formats, a JPEG
    without an end, and everything with `decode`, are decoded. Raises MediaError as
    `open_picture`, and for sides that the image processors refuse.
    """
    size = _patient(path.stat).st_size

    def look() -> PictureFacts:
        with open_regular(path) as file, PIL.Image.open(file) as picture:
            facts = PictureFacts(*picture.size, size)
            whole = not decode and _looks_whole(path, picture)
        if not whole:
            open_picture(path)
        return facts

    with warnings.catch_warnings():
        # The report names oversized pictures itself.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        facts = _judged(path, look)
    long, short = max(facts.width, facts.height), min(facts.width, facts.height)
    if long > MAX_ASPECT * short:
        raise MediaError(
            "aspect",
            f"{path}: {facts.width} x {facts.height} pixels, one side is more than "
            f"{MAX_ASPECT} times the other",
        )
    return facts


def _looks_whole(path: Path, picture: PIL.Image.Image) -> bool:
    if picture.format == "PNG":
        picture.verify()
        return True
    if picture.format != "JPEG":
        return False
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - 256))
        return file.read().rstrip(b"\0\r\n\t ").endswith(_JPEG_END)


def _judged(path: Path, read: Callable[[], T]) -> T:
    """`read()`, with what Pillow raises made into a MediaError."""
    try:
        return _patient(read)
    except MediaError:
        raise
    except _DECODING as fault:
        raise MediaError(_kind_of(path, fault), f"{path}: {fault}") from fault


def _kind_of(path: Path, fault: Exception) -> str:
    if isinstance(fault, PIL.Image.DecompressionBombError):
        return "bomb"
    if getattr(fault, "errno", None) is not None:
        return "missing"
    if path.stat().st_size == 0:
        return "empty-file"
    return "no-picture" if isinstance(fault, PIL.UnidentifiedImageError) else "broken"


def _patient(act: Callable[[], T]) -> T:
    """`act()`, again after a while where the file system fails for the moment.

    Raises StorageError if it goes on failing: that must never look like a fault of the data,
    which would be replaced, and be whole again after a resume.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return act()
        except OSError as fault:
            if fault.errno is None or fault.errno in _LASTING:
                raise
            if pause is None:
                raise StorageError(f"media cannot be read now: {fault}") from fault
        time.sleep(pause)
    raise AssertionError("left by return or raise")
