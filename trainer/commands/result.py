"""Loading what was trained, for the helper programs that merge it and ask it."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
from transformers import set_seed

from orchestrator.contract.resolved import ResolvedJob
from trainer.base_model.modeling import Loaded, load_model
from trainer.checkpoint import restore
from trainer.vision_language.families.processor import Encoded, VisionChatProcessor


def load_trained(job: ResolvedJob, adapter: str, device: torch.device) -> Loaded:
    """The model as it was trained, quantized as then, with the adapter of a folder.

    Raises UserError for the base and ContractRefused for an adapter that does not fit.
    """
    set_seed(int(job.training.get("seed", 0)))
    loaded = load_model(job, device)
    restore.load_weights_only(loaded.model, adapter)
    loaded.model.eval()
    return loaded


def model_inputs(
    processor: VisionChatProcessor, encoded: Encoded, device: torch.device
) -> dict[str, Any]:
    """One sequence as the model's keyword arguments."""
    ids = torch.tensor([encoded.input_ids], device=device)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == processor.image_token_id).long(),
    }
    if encoded.pixel_values is not None and encoded.image_grid_thw is not None:
        inputs["pixel_values"] = encoded.pixel_values.to(device)
        inputs["image_grid_thw"] = encoded.image_grid_thw.to(device)
    return inputs
