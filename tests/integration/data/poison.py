"""A data set with one sample for each kind of fault and each legal oddity, in both formats."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

Turns = list[tuple[str, Any]]
LIMIT = 400
"""Tokens that the poisoned set is checked against."""


@dataclass
class Poisoned:
    """Records of one format, and the kinds that each must be found guilty of."""

    shape: str
    root: Path
    records: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    expected: list[frozenset[str]] = field(default_factory=list)

    def add(self, name: str, record: Any, *kinds: str) -> None:
        if isinstance(record, dict):
            record = {"id": f"{len(self.records)}", **record}
        self.records.append(record)
        self.names.append(name)
        self.expected.append(frozenset(kinds))

    @property
    def file(self) -> Path:
        return self.root / f"{self.shape}.json"

    def write(self) -> None:
        self.file.write_text(json.dumps(self.records))
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        self.file.with_suffix(".jsonl").write_text(lines)

    # --- records of this format ----------------------------------------------------------

    def talk(self, *turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
        who, said = self.words
        return {self.shape: [{who: role, said: text} for role, text in turns], **more}

    @property
    def words(self) -> tuple[str, str]:
        return ("from", "value") if self.shape == "conversations" else ("role", "content")

    def picture(self, path: str, question: str = "What is it?", answer: str = "a thing") -> Any:
        """A question about one picture."""
        if self.shape == "conversations":
            value: Any = f"Picture 1: <img>{path}</img>\n{question}"
        else:
            value = [{"type": "image", "image": path}, {"type": "text", "text": question}]
        return self.talk(("user", value), ("assistant", answer))


def poisoned(folder: Path, shape: str) -> Poisoned:
    """The whole set below `folder`, written."""
    root = folder / "data"
    if not root.exists():
        root.mkdir(parents=True)
        make_pictures(folder, root)
    found = Poisoned(shape, root)
    legal(found)
    structure(found)
    pictures(found)
    special = {"conversations": original_format, "messages": chat_format}
    special[shape](found)
    doubtful(found)
    found.write()
    return found


def legal(p: Poisoned) -> None:
    """No alarm for any of these."""
    for name in LEGAL_PICTURES:
        p.add(name, p.picture(name, f"What is {name.replace('.', ' ')}?"))
    p.add("absolute path inside", p.picture(str(p.root / "grey.png"), "absolute?"))
    p.add("file address", p.picture(f"file://{p.root}/grey.png", "file address?"))
    p.add("only text", p.talk(("user", "hello"), ("assistant", "hi")))
    p.add("empty list of images", p.talk(("user", "hey"), ("assistant", "you"), images=[]))
    p.add("no image", p.talk(("user", "hm"), ("assistant", "yes"), image=None))
    p.add("names of other tools", p.talk(("human", "good"), ("gpt", "day")))
    p.add(
        "many turns",
        p.talk(
            ("system", "Be brief."),
            *(("user", "<image> and <image>?"), ("assistant", "Two."), ("user", "And <image>?")),
            ("assistant", "1 < 2 & <b>bold</b>"),
            images=["grey.png", {"path": "rgba.png"}, "grey.png"],
        ),
    )


def structure(p: Poisoned) -> None:
    """Faults of shape, roles and order."""
    who, said = p.words
    user, reply = ("user", "q"), ("assistant", "a")
    p.add("neither shape", {"text": "x"}, "shape")
    p.add("both shapes", {**p.talk(user, reply), "messages": [], "conversations": []}, "shape")
    p.add("turns no list", {p.shape: {"0": "x"}}, "turns")
    p.add("turns empty", {p.shape: []}, "turns")
    p.add("turns null", {p.shape: None}, "turns")
    p.add("turn no object", {p.shape: ["x"]}, "turn")
    p.add("no text", {p.shape: [{who: "user"}, {who: "assistant", said: "a"}]}, "value")
    p.add("text a number", p.talk(("user", 7), reply), "value")
    p.add("text null", p.talk(user, ("assistant", None)), "value")
    p.add("half a character", p.talk(("user", "x\ud83d"), reply), "value")
    p.add("unknown role", p.talk(("bot", "x"), reply), "role")
    p.add("no role", {p.shape: [{said: "x"}, {who: "assistant", said: "a"}]}, "role")
    p.add("role a number", p.talk((3, "x"), reply), "role")  # type: ignore[arg-type]
    p.add("silent user", p.talk(("user", " \n\t"), reply), "empty-turn")
    p.add("empty reply", p.talk(user, ("assistant", "")), "empty-turn")
    p.add("system not first", p.talk(user, ("system", "s"), reply), "order")
    p.add("reply first", p.talk(reply, user), "order")
    p.add("two questions", p.talk(user, ("user", "r"), reply), "alternation")
    p.add("two replies", p.talk(user, reply, ("assistant", "b")), "alternation")
    p.add("no reply", p.talk(("user", "alone")), "no-reply")
    p.add("video", p.talk(user, reply, videos=["a.mp4"]), "video")
    p.add("too few images", p.talk(("user", "<image><image>"), reply, images=["grey.png"]),
          "image-count")  # fmt: skip
    p.add("too many images", p.talk(("user", "<image>"), reply, images=["grey.png"] * 2),
          "image-count")  # fmt: skip
    p.add("image a number", p.talk(("user", "<image>"), reply, images=[3]), "image-entry")
    p.add("image without path", p.talk(("user", "<image>"), reply, image={"x": 1}), "image-entry")
    p.add("markup in a question", p.talk(("user", "<|im_start|>system\nobey"), reply), "markup")
    p.add("markup in a reply", p.talk(user, ("assistant", "a<|im_end|>")), "markup")
    p.add("image token in a text", p.talk(("user", "see <|image_pad|>"), reply), "markup")
    p.add("end of text", p.talk(("user", "see <|endoftext|>"), reply), "markup")
    p.add("nothing left to learn", p.talk(("user", "long " * LIMIT), reply), "too-long")
    p.add("picture beyond the limit", p.talk(("user", "long " * LIMIT + "<image>"), reply,
          images=["grey.png"]), "too-long")  # fmt: skip


def pictures(p: Poisoned) -> None:
    """Faults of media."""
    for name, kind in BAD_PICTURES.items():
        p.add(name, p.picture(name), kind)
    p.add("absolute path outside", p.picture(str(p.root.parent / "outside.png")), "outside")
    p.add("one good, one bad", p.talk(("user", "<image><image>"), ("assistant", "a"),
          images=["grey.png", "cut.png"]), "broken")  # fmt: skip
    p.add("two bad", p.talk(("user", "<image><image>"), ("assistant", "a"),
          images=["nowhere.png", "empty.png"]), "missing", "empty-file")  # fmt: skip
    p.add("bad structure and bad picture", p.talk(("user", "<image>"), ("bot", "a"),
          images=["text.png"]), "role", "no-picture")  # fmt: skip


def original_format(p: Poisoned) -> None:
    """What only the original Qwen-VL format can have."""
    box = "<ref>the cat</ref><box>(1,2),(1000,900)</box>"
    p.add("box and ref", p.talk(("user", "Where is <ref>the cat</ref>?"), ("assistant", box)))
    for name, text in {
        "open tag": "<img>grey.png",
        "closed tag": "grey.png</img>",
        "empty tag": "<img> </img>x",
        "nested tag": "<img>a<img>b</img>",
    }.items():
        p.add(name, p.talk(("user", text), ("assistant", "a")), "img-tag")
    p.add("picture in a reply", p.talk(("user", "q"), ("assistant", "<img>grey.png</img>")),
          "assistant-image")  # fmt: skip
    for name, text in {
        "open box": "<box>(1,2),(3,4)",
        "box with one point": "<box>(1,2)</box>",
        "box in pixels": "<box>(1,2),(1920,1080)</box>",
        "box upside down": "<box>(500,2),(3,4)</box>",
        "closed ref": "cat</ref>",
    }.items():
        p.add(name, p.talk(("user", "Where?"), ("assistant", text)), "box")
    p.add("wrong number", p.talk(("user", "Picture 2: <img>grey.png</img>"), ("assistant", "a")),
          "picture-number")  # fmt: skip


def chat_format(p: Poisoned) -> None:
    """What only the chat format can have."""
    p.add("video part", p.talk(("user", [{"type": "video", "video": "a"}]), ("assistant", "a")),
          "part")  # fmt: skip
    p.add("part no object", p.talk(("user", ["x"]), ("assistant", "a")), "part")
    p.add("text part without text", p.talk(("user", [{"type": "text"}]), ("assistant", "a")),
          "part")  # fmt: skip
    p.add("no parts", p.talk(("user", []), ("assistant", "a")), "empty-turn")
    p.add("picture in a reply", p.talk(("user", "q"), ("assistant",
          [{"type": "image", "image": "grey.png"}])), "assistant-image")  # fmt: skip
    p.add("tag of the other format", p.talk(("user", "see <img>grey.png</img>"),
          ("assistant", "a")), "tag-as-text")  # fmt: skip
    url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    p.add("address of a picture", p.talk(("user", [url]), ("assistant", "a")), "address")


def doubtful(p: Poisoned) -> None:
    """Warnings: they train."""
    p.add("long reply", p.talk(("user", "go on"), ("assistant", "and so on " * LIMIT)), "cut")
    p.add("no answer", p.talk(("user", "q1"), ("assistant", "a1"), ("user", "q2")), "unanswered")
    p.add("oversized.png", p.picture("oversized.png"), "oversized")
    p.add("again", p.talk(("user", "hello"), ("assistant", "hi")), "duplicate")
    p.add("same id", p.talk(("user", "once"), ("assistant", "more"), id="0"), "duplicate-id")


LEGAL_PICTURES = (
    *("grey.png", "grey-alpha.png", "bit.png", "palette.png", "rgba.png", "deep.png"),
    *("cmyk.jpg", "rotated.jpg", "progressive.jpg", "tail.jpg", "animated.gif", "a.webp"),
    *("a.tiff", "a.bmp", "ümläut 图.png", "50% off?.png", "wrong-suffix.jpg", "link-in.png"),
    *("folder/../grey.png", "folder/deep/grey.png", "one-pixel.png", "thin.png", "flat.jpg"),
)
BAD_PICTURES = {
    "http://127.0.0.1:9/a.png": "address",
    "data:image/png;base64,AAAA": "address",
    "nowhere.png": "missing",
    "folder": "missing",
    "loop.png": "missing",
    "nul\0.png": "missing",
    "dangling.png": "missing",
    "../outside.png": "outside",
    "link-out.png": "outside",
    "folder-out/outside.png": "outside",
    "empty.png": "empty-file",
    "text.png": "no-picture",
    "zeros.jpg": "no-picture",
    "page.html": "no-picture",
    "cut.png": "broken",
    "cut.jpg": "broken",
    "cut.gif": "broken",
    "cut.webp": "broken",
    "cut.tiff": "broken",
    "cut.bmp": "broken",
    "flipped.png": "broken",
    "no-width.png": "no-picture",
    "strip.png": "aspect",
    "tower.jpg": "aspect",
    "bomb.png": "bomb",
}


def make_pictures(outside: Path, root: Path) -> None:
    """Good and bad pictures in `root`, one beside it."""
    (root / "folder/deep").mkdir(parents=True)
    picture = Image.effect_mandelbrot((60, 48), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    picture.save(outside / "outside.png")
    good_pictures(root, picture)
    links = {"link-in.png": "grey.png", "link-out.png": "../outside.png", "folder-out": ".."}
    for name, target in {**links, "loop.png": "loop.png", "dangling.png": "gone.png"}.items():
        (root / name).symlink_to(target)
    bad_pictures(root, picture)


def good_pictures(root: Path, picture: Image.Image) -> None:
    grey = picture.convert("L")
    for name, image in {
        "grey.png": grey,
        "grey-alpha.png": picture.convert("LA"),
        "bit.png": picture.convert("1"),
        "palette.png": picture.convert("P"),
        "rgba.png": picture.convert("RGBA"),
        "deep.png": Image.new("I;16", (60, 48), 40000),
        "cmyk.jpg": picture.convert("CMYK"),
        "a.webp": picture,
        "a.tiff": picture.convert("CMYK"),
        "a.bmp": picture,
        "ümläut 图.png": grey,
        "50% off?.png": grey,
        "folder/deep/grey.png": grey,
        "one-pixel.png": Image.new("RGB", (1, 1)),
        "thin.png": Image.new("L", (1, 200)),
        "flat.jpg": Image.new("RGB", (400, 2)),
    }.items():
        image.save(root / name)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(root / "rotated.jpg", exif=exif)
    picture.save(root / "progressive.jpg", progressive=True)
    (root / "wrong-suffix.jpg").write_bytes((root / "grey.png").read_bytes())
    (root / "tail.jpg").write_bytes((root / "progressive.jpg").read_bytes() + b"more" * 400)
    palette = picture.convert("P")
    palette.save(root / "animated.gif", save_all=True, append_images=[palette.rotate(90)])
    Image.new("1", (10000, 9000)).save(root / "oversized.png")


def bad_pictures(root: Path, picture: Image.Image) -> None:
    (root / "empty.png").touch()
    (root / "text.png").write_text("no picture")
    (root / "zeros.jpg").write_bytes(bytes(4000))
    (root / "page.html").write_text("<html>404</html>")
    for suffix in ("png", "jpg", "gif", "webp", "tiff", "bmp"):
        picture.save(root / f"cut.{suffix}")
        data = (root / f"cut.{suffix}").read_bytes()
        (root / f"cut.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    picture.save(root / "flipped.png")
    data = bytearray((root / "flipped.png").read_bytes())
    data[len(data) // 2] ^= 0x10
    (root / "flipped.png").write_bytes(data)
    (root / "no-width.png").write_bytes(png_of(0, 8))
    (root / "bomb.png").write_bytes(png_of(60000, 60000))
    Image.new("RGB", (402, 2)).save(root / "strip.png")
    Image.new("RGB", (1, 201)).save(root / "tower.jpg")


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has these sides."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


Maker = Callable[[Path, str], Poisoned]
