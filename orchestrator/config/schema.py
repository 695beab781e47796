"""The JSON schema of a job file, for editors. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from orchestrator.config.arguments import reserved, table
from orchestrator.config.arguments.table import Argument, Block
from orchestrator.config.models.job import JobSpec

_TYPES: Mapping[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "dict": {"type": "object"},
    "list": {"type": "array"},
    "list[str]": {"type": "array", "items": {"type": "string"}},
    "list[int]": {"type": "array", "items": {"type": "integer"}},
    "null": {"type": "null"},
}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job file, with the fields and choices of
    TrainingArguments, LoraConfig and BitsAndBytesConfig written out.
    """
    schema = JobSpec.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "qvl-orchestrate job"
    properties = schema["properties"]
    for name, field in JobSpec.model_fields.items():
        properties[name]["description"] = field.description
    for block in table.BLOCKS:
        properties[block] = _block(block, properties[block]["description"])
    # What the models take more freely than their types say:
    properties["deepspeed"] = {
        "description": properties["deepspeed"]["description"],
        "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/DeepSpeedSection"}],
    }
    stage = schema["$defs"]["DeepSpeedSection"]["properties"]["stage"]
    stage["anyOf"] = [{"enum": [1, 2, None]}]  # 3 is known, to be refused with the reason
    properties["env"]["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    return schema


def _block(block: Block, description: str) -> dict[str, Any]:
    fields = {name: _argument(table.table(block)[name]) for name in table.usable(block)}
    if block == "training":
        for name, (value, hint) in reserved.FORCED.items():
            fields[name] = {"const": value, "description": hint}
    if block == "lora":
        fields["target_modules"] = {
            "description": "A preset, a regular expression for whole module names, or a list.",
            "anyOf": [
                {"enum": [*table.TARGET_PRESETS, "all-linear", None]},
                {"type": "string"},
                _TYPES["list[str]"],
            ],
        }
    return {
        "description": description,
        "type": ["object", "null"] if block == "quantization" else "object",
        "properties": fields,
        "additionalProperties": False,
    }


def _argument(argument: Argument) -> dict[str, Any]:
    options = [
        copy.deepcopy(_TYPES[kind])
        for kind in argument.types
        if kind in _TYPES and not (kind == "int" and "float" in argument.types)
    ]
    if "str" in argument.types:
        options.append({"enum": list(argument.choices)} if argument.choices else {"type": "string"})
        options += [{"type": "string", "pattern": f"^{p}$"} for p in argument.choice_patterns]
    entry = options[0] if len(options) == 1 else {"anyOf": options}
    return entry if argument.default is None else {**entry, "default": argument.default}
