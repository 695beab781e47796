"""Handwritten digits as a data set in the original Qwen-VL fine-tuning format.

Takes the 1,797 scanned digits (8 x 8 grey levels) that scikit-learn ships and writes
DIR/train.json, DIR/eval.json and DIR/images/. No picture is in both. The same arguments
give the same bytes.

    python examples/digits/make_data.py DIR [--train 200] [--eval 40]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 56
"""Pixels of a picture's edge."""


def make_data(folder: Path, train: int, held_out: int) -> None:
    """Write `train` samples for training and `held_out` others for evaluation.

    Raises ValueError when there are not that many digits.
    """
    digits = load_digits()
    if train < 1 or held_out < 0 or train + held_out > len(digits.images):
        raise ValueError(f"{train} + {held_out} samples: there are {len(digits.images)} digits")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    parts = {"train": range(train), "eval": range(train, train + held_out)}
    for part, numbers in parts.items():
        samples = []
        for number in numbers:
            name = f"images/{number:04d}.png"
            picture(digits.images[number]).save(folder / name)
            samples.append(sample(number, name, WORDS[digits.target[number]]))
        text = json.dumps(samples, indent=1) + "\n"
        (folder / f"{part}.json").write_text(text, encoding="utf-8")


def picture(grey: Any) -> Image.Image:
    """An 8 x 8 array of levels 0 to 16 as a smooth picture, dark on white."""
    paper = (255 - grey * 255 / 16).round().astype("uint8")
    return Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def sample(number: int, image: str, answer: str) -> dict[str, Any]:
    """One conversation about one picture."""
    question = f"Picture 1: <img>{image}</img>\nWhich digit is this?"
    return {
        "id": f"digit_{number:04d}",
        "conversations": [
            {"from": "user", "value": question},
            {"from": "assistant", "value": answer},
        ],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="write the digits data set")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--train", type=int, default=200, help="samples to train on")
    parser.add_argument("--eval", type=int, default=40, help="held-out samples")
    args = parser.parse_args()
    try:
        make_data(args.folder, args.train, args.eval)
    except ValueError as fault:
        parser.error(str(fault))


if __name__ == "__main__":
    main()
