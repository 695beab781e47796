"""`python encode.py MODEL DATA OUT`: what this interpreter's processor makes of pictures.

Writes OUT.npz: ids, grids and pixels of each by our processor, and pixels and grids by the
library's default one, with the names of both classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def allow_other_build() -> None:
    """Let a torchvision whose compiled part fits another build of torch be imported.

    Its pictures are resized by torch itself; the operators are only looked for on import.
    """
    import importlib.util

    import torch

    if importlib.util.find_spec("torchvision"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


KEPT: list[object] = []


def main(model: Path, data: Path, out: Path) -> None:
    allow_other_build()
    from PIL import Image as Pictures
    from transformers import AutoImageProcessor

    from trainer.vision_language.families import family_of
    from trainer.vision_language.families.processor import VisionChatProcessor
    from trainer.vision_language.formats import Image, Text, Turn

    processor = VisionChatProcessor.from_pretrained(model, family_of(model))
    default = AutoImageProcessor.from_pretrained(str(model))
    found = {"ours": np.array(type(processor.image_processor).__name__)}
    found["default"] = np.array(type(default).__name__)
    whole = Pictures.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    sizes = ((56, 56), (57, 91), (300, 200), (640, 480), (28, 400), (13, 17))
    pictures = [whole.resize(size) for size in sizes]
    pictures += [Pictures.open(p).convert("RGB") for p in sorted((data / "images").iterdir())[:4]]
    turns = [Turn("user", (Image("x"), Text("Which digit?"))), Turn("assistant", (Text("seven"),))]
    for number, picture in enumerate(pictures):
        encoded = processor.encode(turns, [picture])
        assert encoded.pixel_values is not None
        assert encoded.image_grid_thw is not None
        found[f"ids{number}"] = np.array(encoded.input_ids)
        found[f"grid{number}"] = encoded.image_grid_thw.numpy()
        found[f"pixels{number}"] = encoded.pixel_values.numpy()
        made = default(images=[picture], return_tensors="pt")
        found[f"default_grid{number}"] = made["image_grid_thw"].numpy()
        found[f"default_pixels{number}"] = made["pixel_values"].numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
