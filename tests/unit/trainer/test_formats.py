"""Index files and both sample formats, with their faults."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from orchestrator.contract.dataset import media_of, read_index
from trainer.vision_language.formats import ChatSample, DataError, Image, Text, Turn, normalise

ANSWER = {"from": "assistant", "value": "seven"}
WANTED = ChatSample(
    3,
    (
        Turn("user", (Text("Picture 1: "), Image("a/ü 1.png"), Text("\nWhich digit?"))),
        Turn("assistant", (Text("seven"),)),
    ),
)


def conversation(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **more}


def chat(content: Any, **more: Any) -> dict[str, Any]:
    reply = {"role": "assistant", "content": "seven"}
    return {"messages": [{"role": "user", "content": content}, reply], **more}


SAME = {
    "qwen-vl": conversation(
        ("user", "Picture 1: <img>a/ü 1.png</img>\nWhich digit?"), ("assistant", "seven")
    ),
    "llava": conversation(
        ("human", "Picture 1: <image>\nWhich digit?"), ("gpt", "seven"), image="a/ü 1.png"
    ),
    "placeholders": chat("Picture 1: <image>\nWhich digit?", images=["a/ü 1.png"]),
    "parts": chat(
        [
            {"type": "text", "text": "Picture 1: "},
            {"type": "image", "image": "file://a/ü 1.png"},
            {"type": "text", "text": "\nWhich"},
            {"type": "text", "text": " digit?"},
        ]
    ),
    "image_url": chat(
        [
            {"type": "text", "text": "Picture 1: "},
            {"type": "image_url", "image_url": {"url": "a/ü 1.png"}},
            {"type": "text", "text": "\nWhich digit?"},
        ]
    ),
    "bare parts": chat(
        [
            {"type": "text", "text": "Picture 1: "},
            {"type": "image"},
            {"type": "text", "text": "\nWhich digit?"},
        ],
        images=[{"path": "a/ü 1.png"}],
    ),
}


@pytest.mark.parametrize("shape", SAME)
def test_every_shape_gives_the_same_sample(shape: str) -> None:
    assert normalise(SAME[shape], 3) == WANTED
    assert media_of(SAME[shape]) == ("a/ü 1.png",)


def test_several_images_and_turns_keep_their_order() -> None:
    raw = conversation(
        ("system", "Be brief."),
        ("user", "<img>1.png</img><img>2.png</img>Same?"),
        ("assistant", "No."),
        ("user", "And <img>3.png</img>?"),
        ("assistant", "Yes."),
    )
    sample = normalise(raw, 0)
    assert [turn.role for turn in sample.turns] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert tuple(i.path for i in sample.images) == media_of(raw) == ("1.png", "2.png", "3.png")


def test_a_text_only_sample_is_legal_and_stays_verbatim() -> None:
    sample = normalise(chat("  2 < 3 & <b>\n", images=[]), 0)
    assert sample.turns[0].parts == (Text("  2 < 3 & <b>\n"),)
    assert not sample.images


def test_the_placeholders_of_text_messages_are_no_tags() -> None:
    sample = normalise(chat("what does <img>x</img> mean?"), 0)
    assert sample.turns[0].parts == (Text("what does <img>x</img> mean?"),)


FAULTS = {
    "neither": ({"text": "x"}, "needs either"),
    "both": (conversation(("user", "x")) | chat("x"), "not both"),
    "no list": ({"conversations": {}}, "must be a list"),
    "empty list": ({"messages": []}, "not empty"),
    "turn no object": ({"messages": ["x"]}, "turn 0: str instead"),
    "no value": ({"conversations": [{"from": "user"}, ANSWER]}, "turn 0: `value`"),
    "role": (conversation(("bot", "x"), ("assistant", "y")), "turn 0: `from` is 'bot'"),
    "content": (chat(7), "`content` must be"),
    "part type": (chat([{"type": "video", "video": "a.mp4"}]), "type 'video'"),
    "part no object": (chat(["x"]), "type None"),
    "image without path": (chat([{"type": "image"}]), "more <image> placeholders"),
    "more placeholders": (chat("<image><image>", images=["1.png"]), "more <image> placeholders"),
    "more images": (chat("<image>", images=["1.png", "2.png"]), "1 more images listed"),
    "open tag": (conversation(("user", "<img>1.png"), ("gpt", "y")), "not closed"),
    "closed tag": (conversation(("user", "1.png</img>"), ("gpt", "y")), "not opened"),
    "nested tag": (conversation(("user", "<img>a<img>b</img>"), ("gpt", "y")), "no path in"),
    "empty tag": (conversation(("user", "<img> </img>x"), ("gpt", "y")), "no path in"),
    "video": (chat("x", video="a.mp4"), "videos are not supported"),
    "silent user": (conversation(("user", " \n"), ("gpt", "y")), "turn 0: it is empty"),
    "empty reply": (conversation(("user", "x"), ("gpt", "")), "turn 1: it is empty"),
    "no reply": (conversation(("user", "x")), "nothing to learn"),
    "reply first": (conversation(("gpt", "x"), ("user", "y")), "first turn must be the user's"),
    "late system": (conversation(("user", "x"), ("system", "s"), ("gpt", "y")), "only come first"),
    "drawing": (conversation(("user", "x"), ("gpt", "<img>1.png</img>")), "cannot show an image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_record_and_reason(fault: str) -> None:
    raw, reason = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        normalise(raw, 17, file="train.json")
    assert (caught.value.file, caught.value.record) == ("train.json", 17)
    assert reason in caught.value.reason
    assert str(caught.value).startswith("train.json: record 17: ")


def test_a_fault_survives_the_way_out_of_a_worker() -> None:
    fault = pickle.loads(pickle.dumps(DataError("f.json", 3, "why")))
    assert (fault.file, fault.record, fault.reason) == ("f.json", 3, "why")


def test_media_of_never_judges() -> None:
    odd: dict[str, Any] = {
        "image": None,
        "images": [3, {"size": 1}, "a.png"],
        "conversations": "x",
        "messages": [None, {"content": [None, {"type": "image", "image": 5}]}],
    }
    assert media_of(odd) == ("a.png",)
    assert media_of({}) == ()


def test_an_index_is_an_array_or_lines() -> None:
    records = [{"id": 1, "text": "ü\u2028"}, {"id": 2}]
    array = json.dumps(records, ensure_ascii=False).encode()
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode()
    assert read_index(array) == read_index(lines + b"\n\n") == records
    assert read_index(b"\xef\xbb\xbf" + array) == records
    assert read_index(b"") == read_index(b" []\n") == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1}\n\n{"a":', "line 3: not JSON"),
        (b'{"a": 1}\n7\n', "line 2: int instead of an object"),
        (b'[{"a": 1}, []]', "record 1: list instead of an object"),
        (b'[{"a": 1},', "not a JSON array: .* line 1"),
        (b'{"a": 1}\n"\xff"', "line 2: not UTF-8"),
    ],
)
def test_a_damaged_index_says_where(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_index(data)
