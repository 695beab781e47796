"""Write the models of TrainingArguments, LoraConfig, BitsAndBytesConfig and DeepSpeed's settings.

A login node has none of these libraries, so `orchestrator/config/arguments/` keeps the names,
types, choices and defaults of the installed versions as pydantic models. What the libraries do not
say, the bounds of values that can be meant, stands here. With `--check` nothing is written and the
exit status is 1 if a model differs from what is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ARGUMENTS = ROOT / "orchestrator" / "config" / "arguments"
SCALARS = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict", type(None): "null"}
EXPRESSIONS = {
    "bool": "Bool",
    "int": "Integer",
    "float": "Real",
    "str": "str",
    "dict": "dict[str, Any]",
    "list": "list[Any]",
    "list[str]": "list[str]",
    "list[int]": "list[Integer]",
    "null": "None",
}
NAMES = ("Arguments", "Auto", "Bool", "Integer", "Real", "Steps")
STEPS = frozenset({"warmup_steps", "logging_steps", "eval_steps", "eval_delay"})
"""Numbers that stay whole where they are: below 1 they are a share of all steps."""

COUNT = {"ge": 0, "le": 10**9}
ONE = {"ge": 1, "le": 10**6}
MORE = {"gt": 0, "le": 10**9}
SHARE = {"ge": 0, "lt": 1}
SEED = {"ge": 0, "le": 2**32 - 1}
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "per_device_train_batch_size": ONE,
    "per_device_eval_batch_size": ONE,
    "gradient_accumulation_steps": ONE,
    "eval_accumulation_steps": ONE,
    "torch_empty_cache_steps": ONE,
    "dataloader_prefetch_factor": ONE,
    "num_train_epochs": {"gt": 0, "le": 10**6},
    "learning_rate": {"gt": 0, "le": 10},
    "weight_decay": {"ge": 0, "le": 100},
    "adam_epsilon": {"gt": 0, "lt": 1},
    "logging_steps": MORE,
    "eval_steps": MORE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "label_smoothing_factor": SHARE,
    "max_grad_norm": {"ge": 0, "le": 10**6},
    "neftune_noise_alpha": {"ge": 0, "le": 10**4},
    "dataloader_num_workers": {"ge": 0, "le": 4096},
    "seed": SEED,
    "data_seed": SEED,
    "r": {"ge": 1, "le": 65536},
    "lora_alpha": {"ge": 1, "le": 10**6},
    "lora_dropout": SHARE,
}
"""What can be meant; of numbers that are not here: COUNT."""

DTYPES = ("bfloat16", "float16", "float32")
BITSANDBYTES: Mapping[str, tuple[set[str], tuple[str, ...]]] = {
    # BitsAndBytesConfig has no annotations: what its documentation says.
    "llm_int8_skip_modules": ({"list[str]", "null"}, ()),
    "bnb_4bit_compute_dtype": ({"null", "str"}, DTYPES),
    "bnb_4bit_quant_type": ({"str"}, ("fp4", "nf4")),
    "bnb_4bit_quant_storage": ({"null", "str"}, (*DTYPES, "float64", "int8", "uint8")),
}


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a library's class."""

    name: str
    types: set[str]
    default: Any
    choices: tuple[str, ...] = ()
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)


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


def arguments_of(cls: Any) -> Iterator[Argument]:
    """The arguments of a dataclass."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            choices = field.metadata.get("choices") or choices_of(hints[field.name])
            found = type_names(hints[field.name])
            yield Argument(field.name, found, default(field), tuple(choices), bounds_of(field.name))


def bounds_of(name: str) -> Mapping[str, float]:
    """Of `max_steps` -1 says that it is not given."""
    return {"ge": -1, "le": 10**9} if name == "max_steps" else BOUNDS.get(name, COUNT)


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as plain JSON; null where it is an object."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return plain(value)


def plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, bool | int | float | str | list | dict) else None


def arguments_of_bitsandbytes(cls: Any) -> Iterator[Argument]:
    """Those of BitsAndBytesConfig, from its signature."""
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if name in BITSANDBYTES:
            kinds, choices = BITSANDBYTES[name]
            yield Argument(name, kinds, parameter.default, choices)
        else:
            kinds = {SCALARS[type(parameter.default)]}
            yield Argument(name, kinds, parameter.default, (), bounds_of(name))


def model(name: str, block: str, arguments: Iterator[Argument], source: str) -> Iterator[str]:
    """The lines of a class with what a job may give of these arguments."""
    from orchestrator.config.arguments.reserved import reserved

    known = list(arguments)
    usable = [a for a in known if reserved(block, a.name) is None]
    objects = [a.name for a in usable if not a.types - {"null", "object"}]
    yield f"class {name}(Arguments):"
    yield f'    SOURCE: ClassVar[str] = "{source}"'
    yield f"    OBJECTS: ClassVar[frozenset[str]] = frozenset({objects!r})"
    yield ""
    for argument in usable:
        if argument.name not in objects:
            yield f"    {argument.name}: {expression(argument)} = {written(argument)}"


def written(argument: Argument) -> str:
    value = argument.default
    if argument.types & {"int", "float"} == {"float"} and isinstance(value, int):
        value = value if argument.name in STEPS else float(value)
    return repr(value)


def expression(argument: Argument) -> str:
    """The annotation of an argument."""
    kinds = set(argument.types) | ({"null"} if argument.default is None else set())
    if "float" in kinds:
        kinds.discard("int")
    parts = []
    for kind in sorted(kinds - {"object"}, key=list(EXPRESSIONS).index):
        if kind == "str" and argument.choices:
            words = [choice for choice in argument.choices if "[" not in choice]
            parts.append(f"Literal[{', '.join(map(repr, words))}]")
            forms = [re.sub(r"\[.*\]", "[0-9]+", c) for c in argument.choices if "[" in c]
            parts += [f'Annotated[str, Field(pattern=r"^{form}$")]' for form in forms]
        elif kind in ("int", "float"):
            base = "Steps" if argument.name in STEPS else EXPRESSIONS[kind]
            said = ", ".join(f"{k}={v:_}" for k, v in argument.bounds.items())
            parts.append(f"Annotated[{base}, Field({said})]" if said else base)
        else:
            parts.append(EXPRESSIONS[kind])
    return " | ".join(parts)


def deepspeed_models(classes: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one class for each block of DeepSpeed's settings, inner ones first."""
    names = {cls: name for name, cls in classes.items()}
    for name, cls in classes.items():
        yield f"class {name}(Arguments):"
        for field, info in cls.model_fields.items():
            for spelling in dict.fromkeys((field, info.alias or field)):
                yield f"    {spelling}: {deepspeed_expression(info, names)} | None = None"
        yield ""
        yield ""


def deepspeed_expression(info: Any, names: Mapping[Any, str]) -> str:
    inner = [a for a in (typing.get_args(info.annotation) or (info.annotation,)) if a in names]
    if inner:
        return f"{names[inner[0]]} | Auto"
    if getattr(info.annotation, "__name__", "") == "ZeroStageEnum":
        return "Any"  # numbers, which `resolving.deepspeed` compares with the job
    kinds = {kind for kind in type_names(info.annotation) if kind in EXPRESSIONS} - {"null"}
    if Path in typing.get_args(info.annotation):
        kinds = {"str"}
    if not kinds:
        return "Any"
    limits = {
        key: getattr(limit, key)
        for limit in info.metadata
        for key in ("gt", "ge", "lt", "le")
        if hasattr(limit, key)
    }
    argument = Argument("", kinds, "auto", tuple(choices_of(info.annotation)), limits)
    return f"{expression(argument)} | Auto"


def head(source: str) -> list[str]:
    return [
        f'"""Generated by tools/gen_argument_models.py from {source}: do not edit."""',
        "",
        "# fmt: off",
        "# ruff: noqa",
        "",
        "from __future__ import annotations",
        "",
        "from typing import Annotated, Any, ClassVar, Literal",
        "",
        "from pydantic import Field",
        "",
        f"from orchestrator.config.arguments.base import {', '.join(NAMES)}",
        "",
        "",
    ]


def texts() -> dict[str, str]:
    """Every module by its file name, from the installed packages."""
    import deepspeed
    import peft
    import transformers

    hugging_face, adapters = f"transformers {transformers.__version__}", f"peft {peft.__version__}"
    training, lora = transformers.TrainingArguments, peft.LoraConfig
    bits = transformers.BitsAndBytesConfig
    made = {
        "training_arguments.py": (
            hugging_face,
            model(
                "TrainingArguments",
                "training",
                arguments_of(training),
                f"TrainingArguments ({hugging_face})",
            ),
        ),
        "lora_config.py": (
            adapters,
            model("LoraConfig", "lora", arguments_of(lora), f"LoraConfig ({adapters})"),
        ),
        "bitsandbytes_config.py": (
            hugging_face,
            model(
                "BitsAndBytesConfig",
                "quantization",
                arguments_of_bitsandbytes(bits),
                f"BitsAndBytesConfig ({hugging_face})",
            ),
        ),
        "deepspeed_config.py": (
            f"deepspeed {deepspeed.__version__}",
            deepspeed_models(deepspeed_classes()),
        ),
    }
    return {
        name: "\n".join([*head(source), *lines]).rstrip() + "\n"
        for name, (source, lines) in made.items()
    }


def deepspeed_classes() -> dict[str, Any]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import precision_config as precision
    from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
    from deepspeed.runtime.zero import leaf_module_config, offload_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "OffloadParam": offload_config.DeepSpeedZeroOffloadParamConfig,
        "OffloadOptimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "ZenFlow": ZenFlowConfig,
        "LeafModule": leaf_module_config.DeepSpeedZeroLeafModuleConfig,
        "Zero": DeepSpeedZeroConfig,
        "BFloat16": precision.DeepSpeedBF16Config,
        "Float16": precision.DeepSpeedFP16Config,
        "Compile": CompileConfig,
        "CommsLogger": CommsLoggerConfig,
        "TensorBoard": monitor.TensorBoardConfig,
        "Csv": monitor.CSVConfig,
        "Wandb": monitor.WandbConfig,
        "Comet": monitor.CometConfig,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if different")
    options = parser.parse_args()
    stale = []
    for name, text in texts().items():
        path = ARGUMENTS / name
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
