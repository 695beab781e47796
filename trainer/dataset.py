"""Samples as tensors, and micro-batches of them. Nothing here draws random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import Dataset

from orchestrator.contract.dataset import read_index
from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import UserError
from trainer.families.processor import IGNORE, Encoded, VisionChatProcessor
from trainer.formats import ChatSample, DataError, normalise

Item: TypeAlias = dict[str, Any]


class ChatDataset(Dataset[Item]):
    """Raw records as model inputs; reading one twice gives the same tensors.

    records: samples as the index file has them, checked when they are read
    processor: of the model to train
    media_root: folder that relative media paths start from, and that none may leave
    max_length: longest sequence in tokens; None = no limit
    file: name of the index file, for messages
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        processor: VisionChatProcessor,
        *,
        media_root: Path,
        max_length: int | None,
        file: str = "<data>",
    ) -> None:
        self.records = records
        self.processor = processor
        self.media_root = media_root.resolve()
        self.max_length = max_length
        self.file = file

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        """Tensors of record `i`.

        input_ids, labels, mm_token_type_ids (1 on image tokens): int64 [length];
        pixel_values float [patches, dim] and image_grid_thw int64 [images, 3] when the
        sample has images; index: int. Raises DataError for every fault of the record or
        of its media.
        """
        sample = normalise(self.records[i], i, file=self.file)
        try:
            encoded = self.processor.encode(sample.turns, self._pictures(sample))
            keep = kept_length(encoded, self.max_length)
        except (ValueError, OSError, PIL.Image.DecompressionBombError) as fault:
            raise DataError(self.file, i, str(fault)) from fault
        ids = torch.tensor(encoded.input_ids[:keep])
        item: Item = {
            "input_ids": ids,
            "labels": torch.tensor(encoded.labels[:keep]),
            "mm_token_type_ids": (ids == self.processor.image_token_id).long(),
            "index": i,
        }
        if encoded.pixel_values is not None:
            item["pixel_values"] = encoded.pixel_values
            item["image_grid_thw"] = encoded.image_grid_thw
        return item

    def _pictures(self, sample: ChatSample) -> list[PIL.Image.Image]:
        return [open_picture(media_file(self.media_root, i.path)) for i in sample.images]


class Collator:
    """Items of one micro-batch as padded tensors.

    pad_token_id: fills input_ids on the right; the attention mask hides it
    multiple_of: pad the length up to a multiple of this; None = the longest item's length
    """

    def __init__(self, pad_token_id: int, *, multiple_of: int | None = None) -> None:
        self.pad_token_id = pad_token_id
        self.multiple_of = multiple_of

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Tensors of the micro-batch.

        int64 [micro, length]: input_ids, attention_mask, labels, mm_token_type_ids;
        pixel_values float [patches, dim] and image_grid_thw int64 [images, 3] joined over
        the items in order, absent when none has an image; sample_index int64 [micro].
        """
        length = max(len(item["input_ids"]) for item in items)
        if self.multiple_of:
            length = -(-length // self.multiple_of) * self.multiple_of
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE, "mm_token_type_ids": 0}
        batch = {
            key: torch.stack([_padded(item[key], length, fill) for item in items])
            for key, fill in fills.items()
        }
        ones = [torch.ones(len(item["input_ids"]), dtype=torch.long) for item in items]
        batch["attention_mask"] = torch.stack([_padded(row, length, 0) for row in ones])
        for key in ("pixel_values", "image_grid_thw"):
            rows = [item[key] for item in items if key in item]
            if rows:
                batch[key] = torch.cat(rows)
        batch["sample_index"] = torch.tensor([item["index"] for item in items])
        return batch


def load_dataset(
    spec: DataSpec,
    which: Literal["train", "eval"],
    processor: VisionChatProcessor,
    max_length: int | None,
) -> ChatDataset:
    """The data set of one index file of the job.

    Raises UserError when the job names no such file, or when it cannot be read, is
    malformed or is empty.
    """
    name = spec.train if which == "train" else spec.eval
    if name is None:
        raise UserError(f"the job has no {which} data", hint=f"set data.{which} in job.yaml")
    file = Path(name)
    try:
        records = read_index(file.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserError(f"data.{which}: {file}: {fault}") from None
    if not records:
        raise UserError(f"data.{which}: {file} has no samples")
    root = Path(spec.media_root) if spec.media_root is not None else file.parent
    return ChatDataset(records, processor, media_root=root, max_length=max_length, file=str(file))


def kept_length(encoded: Encoded, max_length: int | None) -> int:
    """Tokens to keep of a sequence: all, or the first `max_length`.

    Only trailing text is ever cut. Raises ValueError when the cut would take or split an
    image, or would leave nothing to learn.
    """
    length = len(encoded.input_ids)
    if max_length is None or length <= max_length:
        return length
    if any(end > max_length for _, end in encoded.image_spans):
        raise ValueError(
            f"{length} tokens, the limit is {max_length}, and the cut would go through an image "
            "or before it: use a smaller picture or raise max_length"
        )
    if all(label == IGNORE for label in encoded.labels[:max_length]):
        raise ValueError(f"{length} tokens, and nothing to learn in the first {max_length}")
    return max_length


def media_file(root: Path, name: str) -> Path:
    """The file that a sample's media path means, with every link followed.

    `root` is the resolved media root. Raises ValueError for web addresses and embedded
    data, for what is no file, and for what lies outside the root after following links.
    """
    if "://" in name or name.startswith("data:"):
        raise ValueError(f"{name[:80]}: only files are read, no addresses and no embedded data")
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as fault:
        raise ValueError(f"{name}: {getattr(fault, 'strerror', None) or fault}") from None
    if not path.is_relative_to(root):
        raise ValueError(f"{name}: lies outside the media root {root}")
    if not path.is_file():
        raise ValueError(f"{name}: not a file")
    return path


def open_picture(path: Path) -> PIL.Image.Image:
    """The picture in RGB, turned upright as its EXIF data says.

    Raises ValueError (naming the file) when it is no picture, is cut off, or is too large
    to be decoded safely.
    """
    try:
        with PIL.Image.open(path) as picture:
            return PIL.ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as fault:
        raise ValueError(f"{path}: {fault}") from fault


def _padded(row: torch.Tensor, length: int, fill: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=fill)
