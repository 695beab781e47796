"""What a trained model says to a question about a picture."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.contract.resolved import ResolvedJob
from orchestrator.errors import UserError
from trainer.base_model.modeling import Loaded
from trainer.commands.result import load_trained, model_inputs
from trainer.commands.tool import Tool
from trainer.vision_language.families.processor import MarkupError
from trainer.vision_language.formats import Image, Part, Text, Turn
from trainer.vision_language.media import MediaError, open_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask whom. `adapter` is a folder in PEFT's format, `images` are files."""

    job: ResolvedJob
    adapter: str
    question: str
    images: tuple[str, ...] = ()
    max_new_tokens: int = 128
    compare: bool = False
    """Ask the base without the adapter too."""


def answer(loaded: Loaded, request: Request, device: torch.device) -> str:
    """The model's greedy answer. Raises UserError for pictures and texts it cannot take."""
    parts: list[Part] = [Image(path) for path in request.images]
    turn = Turn("user", (*parts, Text(request.question)))
    processor = loaded.processor
    try:
        pictures = [open_picture(Path(path)) for path in request.images]
        encoded = processor.prompt([turn], pictures)
    except (MediaError, MarkupError, ValueError) as fault:
        raise UserError(str(fault)) from None
    inputs = model_inputs(processor, encoded, device)
    with torch.no_grad():
        ids = loaded.model.generate(
            **inputs,
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=processor.end_token_id,
            pad_token_id=processor.pad_token_id,
        )
    said = ids[0, len(encoded.input_ids) :].tolist()
    if said and said[-1] == processor.end_token_id:
        said.pop()
    return str(processor.tokenizer.decode(said))


def work(tool: Tool, request: Request) -> dict[str, Any]:
    """`answer`, and `base_answer` where asked for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tool.say("progress", what="loading the model", done=0, total=1)
    loaded = load_trained(request.job, request.adapter, device)
    tool.say("progress", what="answering", done=1, total=1)
    result = {"answer": answer(loaded, request, device)}
    if request.compare:
        with loaded.model.disable_adapter():
            result["base_answer"] = answer(loaded, request, device)
    return result
