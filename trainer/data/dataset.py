"""Samples as tensors, and micro-batches of them. Nothing here draws random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import PIL.Image
import torch
from torch.utils.data import Dataset

from orchestrator.contract.dataset import read_index
from orchestrator.contract.regular import read_regular
from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import DataFault, UserError
from trainer.vision_language.families.processor import IGNORE, Encoded, VisionChatProcessor
from trainer.vision_language.formats import ChatSample, DataError, normalise
from trainer.vision_language.media import media_file, open_picture

Item: TypeAlias = dict[str, Any]


class LengthError(ValueError):
    """A sample that cannot be cut to the limit."""

    kind = "too-long"


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

        input_ids, labels, mm_token_type_ids (1 on image tokens): int64 [T];
        pixel_values float [P, D] and image_grid_thw int64 [N, 3] when the sample has
        images; index: int. Raises DataError for every fault of the record or
        of its media.
        """
        sample = normalise(self.records[i], i, file=self.file)
        try:
            encoded = self.processor.encode(sample.turns, self.pictures(sample))
            keep = kept_length(encoded, self.max_length)
        except ValueError as fault:
            raise DataError(self.file, i, str(fault), getattr(fault, "kind", "sample")) from fault
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

    def pictures(self, sample: ChatSample) -> list[PIL.Image.Image]:
        """A sample's pictures, decoded. Raises MediaError."""
        return [open_picture(media_file(self.media_root, i.path)) for i in sample.images]


class Collator:
    """Items of one micro-batch as padded tensors.

    pad_token_id: fills input_ids on the right; the attention mask hides it
    multiple_of: pad the length up to a multiple of this; None = the longest item's length
    """

    def __init__(self, pad_token_id: int, *, multiple_of: int | None = None) -> None:
        self.pad_token_id = pad_token_id
        self.multiple_of = multiple_of

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Tensors of the micro-batch.

        int64 [B, T]: input_ids, attention_mask, labels, mm_token_type_ids;
        pixel_values float [P, D] and image_grid_thw int64 [N, 3] joined over the items in
        order, absent when none has an image; sample_index int64 [B].
        With a broken item there is nothing but its `fault`; `replaced` lists the
        replacements of items (trainer.data.replacing takes both out again).
        """
        for item in items:
            if "fault" in item:
                return {"fault": item["fault"]}
        length = max(len(item["input_ids"]) for item in items)
        if self.multiple_of:
            length = -(-length // self.multiple_of) * self.multiple_of
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE, "mm_token_type_ids": 0}
        batch: dict[str, Any] = {
            key: torch.stack([_padded(item[key], length, fill) for item in items])
            for key, fill in fills.items()
        }
        ones = [torch.ones(len(item["input_ids"]), dtype=torch.long) for item in items]
        batch["attention_mask"] = torch.stack([_padded(row, length, 0) for row in ones])
        for key in ("pixel_values", "image_grid_thw"):
            rows = [item[key] for item in items if key in item]
            if rows:
                batch[key] = torch.cat(rows)
        replaced = [item["replaced"] for item in items if "replaced" in item]
        if replaced:
            batch["replaced"] = replaced
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
        records = read_index(read_regular(file))
    except (OSError, ValueError) as fault:
        raise DataFault(f"data.{which}: {file}: {fault}") from None
    if not records:
        raise DataFault(f"data.{which}: {file} has no samples")
    root = Path(spec.media_root) if spec.media_root is not None else file.parent
    return ChatDataset(records, processor, media_root=root, max_length=max_length, file=str(file))


def kept_length(encoded: Encoded, max_length: int | None) -> int:
    """Tokens to keep of a sequence: all, or the first `max_length`.

    Only trailing text is ever cut. Raises LengthError when the cut would take or split an
    image, or would leave nothing to learn.
    """
    length = len(encoded.input_ids)
    if max_length is None or length <= max_length:
        return length
    if any(end > max_length for _, end in encoded.image_spans):
        raise LengthError(
            f"{length} tokens, the limit is {max_length}, and the cut would go through an image "
            "or before it: use a smaller picture or raise max_length"
        )
    if all(label == IGNORE for label in encoded.labels[:max_length]):
        raise LengthError(f"{length} tokens, and nothing to learn in the first {max_length}")
    return max_length


def _padded(row: torch.Tensor, length: int, fill: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=fill)
