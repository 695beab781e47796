"""The arguments of TrainingArguments, LoraConfig and BitsAndBytesConfig, without importing them.

The tables are generated from the pinned versions (`tools/gen_argument_tables.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from orchestrator.config.arguments import reserved
from orchestrator.config.faults import Fault, shown
from orchestrator.config.values.suggest import did_you_mean, listed, nearest

Block = Literal["training", "lora", "quantization"]
BLOCKS: tuple[Block, ...] = ("training", "lora", "quantization")

TARGET_PRESETS = ("llm", "llm+vision", "llm+merger")
"""Presets of `lora.target_modules`."""

_YES = frozenset({"yes", "on", "y", "true"})
_NO = frozenset({"no", "off", "n", "false"})
_WHOLE_IF_POSSIBLE = frozenset({"warmup_steps", "logging_steps", "eval_steps", "eval_delay"})
_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "list[str]": "a list of texts",
    "list[int]": "a list of whole numbers",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number; `above` and `below` exclude the bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def fault(self, value: float) -> str | None:
        """What is wrong with `value`, or None."""
        if self.least is not None and value < self.least:
            return f"must be at least {self.least:g}, not {value!r}"
        if self.above is not None and value <= self.above:
            return f"must be more than {self.above:g}, not {value!r}"
        if self.most is not None and value > self.most:
            return f"must be at most {self.most:g}, not {value!r}"
        if self.below is not None and value >= self.below:
            return f"must be less than {self.below:g}, not {value!r}"
        return None


_ANY = Range(least=0)
_ONE = Range(least=1)
_MORE = Range(above=0)
_SHARE = Range(least=0, below=1)
_SEED = Range(least=0, most=2**32 - 1)
_RANGES: Mapping[str, Range] = {
    "per_device_train_batch_size": _ONE,
    "per_device_eval_batch_size": _ONE,
    "gradient_accumulation_steps": _ONE,
    "eval_accumulation_steps": _ONE,
    "torch_empty_cache_steps": _ONE,
    "dataloader_prefetch_factor": _ONE,
    "num_train_epochs": _MORE,
    "learning_rate": _MORE,
    "adam_epsilon": _MORE,
    "logging_steps": _MORE,
    "eval_steps": _MORE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "label_smoothing_factor": _SHARE,
    "seed": _SEED,
    "data_seed": _SEED,
    "r": _ONE,
    "lora_alpha": _ONE,
    "lora_dropout": _SHARE,
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its plain types, its choices where it is a word, its default."""

    name: str
    types: tuple[str, ...]
    default: Any = None
    choices: tuple[str, ...] = ()
    choice_patterns: tuple[str, ...] = ()


HANG_S = "hang_s"
_OURS: Mapping[Block, tuple[Argument, ...]] = {
    "training": (Argument(HANG_S, ("int", "float"), 600.0),),
    "lora": (),
    "quantization": (),
}
"""Fields beside the library's: `hang_s`, seconds without a step that are taken for a hang."""


@cache
def table(block: Block) -> Mapping[str, Argument]:
    """Every argument of a block by name."""
    return {
        name: Argument(
            name,
            tuple(entry["types"]),
            entry["default"],
            tuple(entry.get("choices", ())),
            tuple(entry.get("choice_patterns", ())),
        )
        for name, entry in _file(block)["fields"].items()
    } | {own.name: own for own in _OURS[block]}


@cache
def usable(block: Block) -> tuple[str, ...]:
    """The names that a job file may give, in the library's order."""
    return tuple(
        name
        for name, argument in table(block).items()
        if reserved.replacement(block, name) is None and set(argument.types) - {"null", "object"}
    )


def default(block: Block, name: str) -> Any:
    """The library's default of an argument."""
    return table(block)[name].default


def class_name(block: Block) -> str:
    """The class that a block's fields go to, with its version."""
    head = _file(block)
    return f"{head['class']} ({head['package']} {head['version']})"


def check(block: Block, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Fault, ...]]:
    """Compare a block with its table.

    Gives the values in their proper types (`yes` as true, `2` as 2.0 where a float is wanted),
    without those that are at fault, and the faults with paths from the block.
    """
    good: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in given.items():
        fault = _unusable(block, name, value)
        if fault is None:
            try:
                good[name] = _value(table(block)[name], value)
                continue
            except _Wrong as wrong:
                faults.append(Fault((name,), wrong.message, wrong.hint))
        else:
            faults.append(fault)
    return good, tuple(faults)


class _Wrong(Exception):
    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@cache
def _file(block: Block) -> Mapping[str, Any]:
    source = resources.files("orchestrator.config.arguments").joinpath("tables", f"{block}.json")
    loaded: Mapping[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    return loaded


def _unusable(block: Block, name: str, value: Any) -> Fault | None:
    """The fault of a name that may not be given, whatever its value."""
    if block == "training" and name in reserved.FORCED:
        wanted, why = reserved.FORCED[name]
        given = _switch(value) if isinstance(value, str) else value
        return None if given is wanted else Fault((name,), "cannot be turned on", why)
    if (instead := reserved.replacement(block, name)) is not None:
        mine = name in table(block) or name in reserved.TRAINING
        return Fault((name,), "cannot be set here" if mine else "unknown field", instead)
    if name in table(block):
        if name in usable(block):
            return None
        return Fault((name,), "takes a Python object, which a job file cannot give", "remove it")
    help_ = did_you_mean(name, usable(block)) or elsewhere(name, but=block)
    return Fault((name,), "unknown field", help_ or f"fields are those of {class_name(block)}")


def elsewhere(name: str, but: str | None = None) -> str | None:
    """`it belongs under training`, if another block knows the name."""
    for block in BLOCKS:
        if block != but and name in usable(block):
            return f"it belongs under {block}"
    return None


def _value(argument: Argument, value: Any) -> Any:
    value = _typed(argument, value)
    if isinstance(value, str):
        _check_choice(argument, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(argument, value)
    return value


def _typed(argument: Argument, value: Any) -> Any:
    """The value as one of the argument's types."""
    types = argument.types
    if value is None:
        if "null" in types or argument.default is None:
            return None
        raise _Wrong(f"must be {_wanted(types)}, not null", "remove the line to get the default")
    if isinstance(value, str) and "bool" in types and value not in argument.choices:
        value = _switch(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = _number(argument.name, types, value)
        fits, value = number is not None, value if number is None else number
    else:
        fits = _fits(types, value)
    if fits:
        return value
    raise _Wrong(f"must be {_wanted(types)}, not {shown(value)}", _quote_hint(types, value))


def _switch(value: str) -> str | bool:
    """`yes` and `off` as people mean them where true or false is wanted."""
    word = value.lower()
    return word in _YES if word in _YES | _NO else value


def _fits(types: tuple[str, ...], value: Any) -> bool:
    if isinstance(value, bool):
        return "bool" in types
    if isinstance(value, str):
        return "str" in types
    if isinstance(value, dict):
        return "dict" in types
    return isinstance(value, list) and _list_fits(types, value)


def _number(name: str, types: tuple[str, ...], value: float) -> float | int | None:
    whole = isinstance(value, int) or value.is_integer()
    if "int" in types:
        return int(value) if whole else None
    if "float" not in types:
        return None
    return int(value) if whole and name in _WHOLE_IF_POSSIBLE else _float(value)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Wrong("the number is out of range") from None


def _list_fits(types: tuple[str, ...], value: list[Any]) -> bool:
    if "list" in types:
        return True
    if "list[str]" in types and all(isinstance(item, str) for item in value):
        return True
    return "list[int]" in types and all(type(item) is int for item in value)


def _check_choice(argument: Argument, value: str) -> None:
    if not argument.choices or value in argument.choices:
        return
    if any(re.fullmatch(pattern, value) for pattern in argument.choice_patterns):
        return
    near = nearest(value, argument.choices)
    hint = f"did you mean {near}?" if near else f"one of {listed(argument.choices)}"
    raise _Wrong(f"{value!r} is not a choice", hint)


def _check_range(argument: Argument, value: float) -> None:
    if argument.name == "max_steps":
        if value == -1 or value >= 1:
            return
        raise _Wrong(f"must be at least 1, not {value!r}")
    if (fault := _RANGES.get(argument.name, _ANY).fault(value)) is not None:
        raise _Wrong(fault)


def _wanted(types: tuple[str, ...]) -> str:
    return listed(dict.fromkeys(_NAMES[t] for t in types if t in _NAMES and t != "null"))


def _quote_hint(types: tuple[str, ...], value: Any) -> str | None:
    if isinstance(value, str) and {"int", "float"} & set(types):
        try:
            float(value)
        except ValueError:
            return None
        return "remove the quotation marks"
    if isinstance(value, int | float) and "str" in types:
        return "put it in quotation marks"
    return None
