"""Write the tables of TrainingArguments, LoraConfig and BitsAndBytesConfig.

A login node has no transformers, so `orchestrator/config/arguments/tables/*.json` keep the names,
types, choices and defaults of the installed versions. With `--check` nothing is written and
the exit status is 1 if a table differs from what is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import json
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

TABLES = Path(__file__).resolve().parent.parent / "orchestrator" / "config" / "arguments" / "tables"
SCALARS = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", type(None): "null"}
DTYPES = ["bfloat16", "float16", "float32"]
BITSANDBYTES: dict[str, dict[str, Any]] = {
    # BitsAndBytesConfig has no annotations: what its documentation says.
    "llm_int8_skip_modules": {"types": ["list[str]", "null"]},
    "bnb_4bit_compute_dtype": {"types": ["null", "str"], "choices": DTYPES},
    "bnb_4bit_quant_type": {"types": ["str"], "choices": ["fp4", "nf4"]},
    "bnb_4bit_quant_storage": {
        "types": ["null", "str"],
        "choices": ["bfloat16", "float16", "float32", "float64", "int8", "uint8"],
    },
}


def type_names(annotation: Any) -> set[str]:
    """The names of the plain types that an annotation allows; `object` for any other."""
    if isinstance(annotation, str):
        return {"object"}
    if annotation is None:
        return {"null"}
    if annotation in SCALARS:
        return {SCALARS[annotation]}
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(type_names(arg) for arg in args))
    if origin is typing.Literal:
        return {SCALARS[type(arg)] for arg in args}
    if origin is dict:
        return {"dict"}
    if origin is list or annotation is list:
        (item,) = type_names(args[0]) if args else {"object"}
        return {f"list[{item}]" if item in SCALARS.values() else "list"}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"str"}
    return {"object"}


def choices_of(annotation: Any) -> list[str]:
    """The texts that enums and literals in an annotation allow."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    if typing.get_origin(annotation) is typing.Literal:
        return [arg for arg in typing.get_args(annotation) if isinstance(arg, str)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for arg in typing.get_args(annotation) for choice in choices_of(arg)]
    return []


def field_entry(field: dataclasses.Field[Any], annotation: Any) -> dict[str, Any]:
    """One line of a dataclass's table."""
    entry: dict[str, Any] = {"types": sorted(type_names(annotation)), "default": default(field)}
    choices = list(field.metadata.get("choices") or choices_of(annotation))
    if choices:
        entry["choices"] = [choice for choice in choices if "[" not in choice]
        patterns = [re.sub(r"\[.*\]", "[0-9]+", choice) for choice in choices if "[" in choice]
        if patterns:
            entry["choice_patterns"] = patterns
    return entry


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as plain JSON; null where it is an object."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, bool | int | float | str | list | dict) else None


def dataclass_table(cls: Any, package: str, version: str) -> dict[str, Any]:
    """The table of a dataclass."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: field_entry(f, hints[f.name]) for f in dataclasses.fields(cls) if f.init}
    return {"class": cls.__name__, "package": package, "version": version, "fields": fields}


def bitsandbytes_table(cls: Any, version: str) -> dict[str, Any]:
    """The table of BitsAndBytesConfig, from its signature."""
    fields = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        known = BITSANDBYTES.get(name) or {"types": [SCALARS[type(parameter.default)]]}
        fields[name] = {"types": known["types"], "default": parameter.default, **known}
    return {"class": cls.__name__, "package": "transformers", "version": version, "fields": fields}


def tables() -> dict[str, dict[str, Any]]:
    """Every table by its file name, from the installed packages."""
    import peft
    import transformers

    version = transformers.__version__
    return {
        "training.json": dataclass_table(transformers.TrainingArguments, "transformers", version),
        "lora.json": dataclass_table(peft.LoraConfig, "peft", peft.__version__),
        "quantization.json": bitsandbytes_table(transformers.BitsAndBytesConfig, version),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if different")
    options = parser.parse_args()
    stale = []
    for name, table in tables().items():
        text = json.dumps(table, indent=1) + "\n"
        path = TABLES / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not options.check:
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} {'differs from the installed version' if options.check else 'written'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
