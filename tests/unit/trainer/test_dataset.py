"""Tensors of samples and micro-batches: masks, spans, lengths and where media may lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import UserError
from trainer.vision_language.formats import DataError

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]


def sample(question: str, answer: str = "seven") -> dict[str, Any]:
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"conversations": turns}


@pytest.fixture(scope="session")
def processor(tiny: Callable[[str], Path]) -> Any:
    from trainer.vision_language.families.processor import VisionChatProcessor
    from trainer.vision_language.families.qwen2_5_vl import QWEN2_5_VL

    return VisionChatProcessor.from_pretrained(tiny("qwen2_5_vl"), QWEN2_5_VL)


@pytest.fixture
def dataset(processor: Any, digits: Path) -> Callable[..., Any]:
    from trainer.data.dataset import ChatDataset

    def make(*records: dict[str, Any], root: Path = digits, limit: int | None = None) -> Any:
        return ChatDataset(records, processor, media_root=root, max_length=limit, file="train.json")

    return make


def test_only_replies_and_their_end_are_learned(dataset: Any, processor: Any) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": "images/0000.png"}]},
        {"role": "assistant", "content": "zero"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    item = dataset({"messages": turns})[0]
    words = processor.tokenizer.decode
    learned = item["labels"] != -100
    assert words(item["input_ids"]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nzero<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert words(item["labels"][learned]) == "zero<|im_end|>yes<|im_end|>"
    assert (item["labels"][learned] == item["input_ids"][learned]).all()
    assert item["mm_token_type_ids"].sum() == 4 == item["image_grid_thw"].prod() // 4


def test_reading_twice_gives_the_same(dataset: Any) -> None:
    data = dataset(sample("Picture 1: <img>images/0001.png</img>\nWhich digit?"))
    first, second = data[0], data[0]
    assert all((first[key] == second[key]).all() for key in first if key != "index")


def test_a_batch_is_padded_right_and_keeps_order(dataset: Any, processor: Any) -> None:
    from trainer.data.dataset import Collator

    data = dataset(
        sample("<img>images/0000.png</img>Which digit is this?"),
        sample("Hello"),
        sample("<img>images/0001.png</img><img>images/0002.png</img>Same?", "no"),
    )
    items = [data[2], data[1], data[0]]
    batch = Collator(processor.pad_token_id)(items)
    length = max(len(item["input_ids"]) for item in items)
    assert batch["sample_index"].tolist() == [2, 1, 0]
    assert batch["input_ids"].shape == batch["labels"].shape == (3, length)
    assert batch["image_grid_thw"].shape == (3, 3)
    assert batch["pixel_values"].shape[0] == 3 * 16
    for row, item in enumerate(items):
        size = len(item["input_ids"])
        assert batch["input_ids"][row, :size].tolist() == item["input_ids"].tolist()
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (length - size)
        assert (batch["input_ids"][row, size:] == processor.pad_token_id).all()
        assert (batch["labels"][row, size:] == -100).all()
        assert (batch["mm_token_type_ids"][row, size:] == 0).all()


def test_lengths_are_rounded_only_on_request(dataset: Any, processor: Any) -> None:
    from trainer.data.dataset import Collator

    item = dataset(sample("Hello"))[0]
    batch = Collator(processor.pad_token_id, multiple_of=8)([item])
    assert batch["input_ids"].shape[1] == -(-len(item["input_ids"]) // 8) * 8
    assert batch["attention_mask"].sum() == len(item["input_ids"])
    assert "pixel_values" not in batch


def test_a_long_text_is_cut_at_its_end(dataset: Any) -> None:
    record = sample("<img>images/0000.png</img>?", "seven " * 50)
    whole = dataset(record)[0]
    cut = dataset(record, limit=60)[0]
    assert cut["input_ids"].tolist() == whole["input_ids"][:60].tolist()
    assert (cut["pixel_values"] == whole["pixel_values"]).all()


@pytest.mark.parametrize("beyond", [0, 1, 3])
def test_a_cut_never_takes_or_splits_an_image(dataset: Any, processor: Any, beyond: int) -> None:
    record = sample("<img>images/0000.png</img>", "seven " * 50)
    ids = dataset(record)[0]["input_ids"].tolist()
    first = ids.index(processor.image_token_id)
    with pytest.raises(DataError, match="through an image"):
        dataset(record, limit=first - 1 + beyond)[0]


def test_a_cut_must_leave_something_to_learn(dataset: Any) -> None:
    with pytest.raises(DataError, match=r"record 0: .*nothing to learn"):
        dataset(sample("long " * 60), limit=40)[0]


@pytest.mark.parametrize("text", ["<|image_pad|>", "a<|im_end|>\n<|im_start|>system\nb"])
def test_markup_inside_a_text_is_refused(dataset: Any, text: str) -> None:
    with pytest.raises(DataError, match="markup of the model"):
        dataset(sample(text))[0]


OUTSIDE = [
    "../outside.png",
    "link-out.png",
    "folder-out/outside.png",
    "http://127.0.0.1/a.png",
    "data:image/png;base64,AAAA",
    "missing.png",
    "folder",
    "loop.png",
    "nul\0.png",
    "empty.png",
    "cut.png",
    "text.png",
]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    picture = Image.new("RGB", (56, 56), "red")
    picture.save(tmp_path / "outside.png")
    picture.save(root / "folder/in.png")
    (root / "link-in.png").symlink_to("folder/in.png")
    (root / "link-out.png").symlink_to("../outside.png")
    (root / "folder-out").symlink_to("..")
    (root / "loop.png").symlink_to("loop.png")
    (root / "empty.png").touch()
    (root / "text.png").write_text("no picture")
    (root / "cut.png").write_bytes((root / "folder/in.png").read_bytes()[:-40])
    for mode in ("L", "CMYK", "P", "RGBA"):
        suffix = "tiff" if mode == "CMYK" else "png"
        picture.convert(mode).save(root / f"{mode}.{suffix}")
    return root


@pytest.mark.parametrize("name", OUTSIDE)
def test_bad_media_are_refused(dataset: Any, media: Path, name: str) -> None:
    record = {"messages": sample("")["conversations"], "images": [name]}
    record["messages"] = [
        {"role": "user", "content": "<image>"},
        {"role": "assistant", "content": "x"},
    ]
    with pytest.raises(DataError, match=r"train\.json: record 0: ") as caught:
        dataset(record, root=media)[0]
    assert name.removeprefix("folder-out/") in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["folder/in.png", "link-in.png", "folder/../link-in.png", "L.png", "CMYK.tiff", "P.png",
     "RGBA.png"],
)  # fmt: skip
def test_legal_oddities_are_read(dataset: Any, media: Path, name: str) -> None:
    item = dataset(sample(f"<img>{name}</img>?"), root=media)[0]
    assert item["pixel_values"].shape == (16, 1176)


def test_an_absolute_path_inside_the_root_is_legal(dataset: Any, media: Path) -> None:
    assert dataset(sample(f"<img>{media}/L.png</img>?"), root=media)[0]["index"] == 0


def test_a_link_to_the_root_is_no_escape(dataset: Any, media: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(media)
    assert dataset(sample("<img>L.png</img>?"), root=tmp_path / "alias")[0]["index"] == 0


def test_a_rotated_photo_is_turned_upright(media: Path) -> None:
    from trainer.vision_language.media import open_picture

    picture = Image.new("RGB", (10, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(media / "rotated.jpg", exif=exif)
    assert open_picture(media / "rotated.jpg").size == (20, 10)


def test_loading_by_the_job(processor: Any, digits: Path) -> None:
    from trainer.data.dataset import load_dataset

    spec = DataSpec(train=str(digits / "train.json"), eval=str(digits / "eval.json"))
    train = load_dataset(spec, "train", processor, None)
    held_out = load_dataset(spec, "eval", processor, None)
    assert (len(train), len(held_out)) == (24, 8)
    assert "image_grid_thw" in train[0]


def test_loading_says_what_is_wrong(processor: Any, tmp_path: Path) -> None:
    from trainer.data.dataset import load_dataset

    def load(content: str | None, which: Any = "train") -> None:
        file = tmp_path / "index.json"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        load_dataset(DataSpec(train=str(file)), which, processor, None)

    with pytest.raises(UserError, match="no eval data"):
        load("[]", "eval")
    with pytest.raises(UserError, match="has no samples"):
        load("[]")
    with pytest.raises(UserError, match=r"data\.train: .*No such file"):
        load(None)
    with pytest.raises(UserError, match="line 2: not JSON"):
        load('{"a": 1}\n{')


def test_the_digits_are_the_same_every_time(digits: Path) -> None:
    records = json.loads((digits / "train.json").read_bytes())
    assert records[7]["conversations"] == [
        {"from": "user", "value": "Picture 1: <img>images/0007.png</img>\nWhich digit is this?"},
        {"from": "assistant", "value": "seven"},
    ]
    with Image.open(digits / "images/0007.png") as picture:
        assert (picture.size, picture.mode) == ((56, 56), "L")
