"""The JSON schema of a job file, for editors. Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.config.models.job import JobSpec

LIBRARIES = {
    "training": "TrainingSection",
    "lora": "LoraSection",
    "quantization": "QuantizationSection",
}
"""Blocks whose fields are a library's."""


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job file, with the fields and choices of
    TrainingArguments, LoraConfig and BitsAndBytesConfig written out.
    """
    schema = JobSpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "qvl-orchestrate job"
    properties, defined = schema["properties"], schema["$defs"]
    for name, field in JobSpec.model_fields.items():
        properties[name]["description"] = field.description
    for block, section in LIBRARIES.items():
        described = {"description": properties[block]["description"]}
        properties[block] = {**defined.pop(section), **described}
    properties["quantization"]["type"] = ["object", "null"]
    # What the models take more freely than their types say:
    properties["deepspeed"] = {
        "description": properties["deepspeed"]["description"],
        "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/DeepSpeedSection"}],
    }
    stage = defined["DeepSpeedSection"]["properties"]["stage"]
    stage["anyOf"] = [{"enum": [1, 2, None]}]  # 3 is known, to be refused with the reason
    properties["env"]["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    return schema
