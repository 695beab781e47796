"""The blocks of a job file whose fields are a library's: training, lora and quantization."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from orchestrator.config.arguments.base import Bool, Integer, Real
from orchestrator.config.arguments.bitsandbytes_config import BitsAndBytesConfig
from orchestrator.config.arguments.lora_config import LoraConfig
from orchestrator.config.arguments.training_arguments import TrainingArguments
from orchestrator.config.fields import refuse

TARGET_PRESETS = ("llm", "llm+vision", "llm+merger")
"""Presets of `lora.target_modules`."""
_TARGETS = {
    "anyOf": [
        {"enum": [*TARGET_PRESETS, "all-linear", None]},
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
    ]
}


def _off(value: bool) -> bool:
    if value:
        hint = "it is always off, so that a NaN loss is seen: remove it"
        raise refuse("cannot be turned on", hint)
    return value


def _steps(value: int) -> int:
    if value == -1 or value >= 1:
        return value
    raise refuse(f"must be at least 1, not {value!r}")


class TrainingSection(TrainingArguments):
    """Fields of TrainingArguments, without those that are set elsewhere."""

    hang_s: Annotated[Real, Field(ge=0, le=10**9)] = Field(
        default=600.0, description="Seconds without a step that are taken for a hang; 0 = none are."
    )
    max_steps: Annotated[Integer, AfterValidator(_steps), Field(le=10**9)] = Field(
        default=-1, description="Optimizer steps of the run."
    )
    logging_nan_inf_filter: Annotated[
        Bool, AfterValidator(_off), WithJsonSchema({"const": False})
    ] = Field(default=False, description="It is always off, so that a NaN loss is seen.")


class LoraSection(LoraConfig):
    """Fields of LoraConfig."""

    target_modules: Annotated[str | list[str] | None, WithJsonSchema(_TARGETS)] = Field(
        default=None,
        description="A preset, a regular expression for whole module names, or a list.",
    )


class QuantizationSection(BitsAndBytesConfig):
    """Fields of BitsAndBytesConfig."""


def qlora() -> QuantizationSection:
    """The quantization of a job that says nothing about it: that of the Q-LoRA paper."""
    return QuantizationSection.model_validate(QLORA)


QLORA: dict[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
