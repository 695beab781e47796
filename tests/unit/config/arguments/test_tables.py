"""The tables equal the installed packages; the lists of reserved words fit them."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.config.arguments import reserved, table
from orchestrator.config.arguments.deepspeed import KNOWN, OURS, ZERO
from orchestrator.config.arguments.table import Block
from orchestrator.config.resolving.job import _FILLED
from tests.unit.config.conftest import Folder

ROOT = Path(__file__).parents[4]


def generator() -> ModuleType:
    path = ROOT / "tools" / "gen_argument_tables.py"
    spec = importlib.util.spec_from_file_location("gen_argument_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_tables_equal_the_installed_versions() -> None:
    for package in ("transformers", "peft", "torch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the tables have nothing to be compared with")
    for name, made in generator().tables().items():
        stored = json.loads((generator().TABLES / name).read_text())
        assert made == stored, "run tools/gen_argument_tables.py"


@pytest.mark.torch
def test_the_fields_of_zero_equal_the_installed_version() -> None:
    found = importlib.util.find_spec("deepspeed")
    if found is None or found.origin is None:
        pytest.skip("deepspeed is not installed: there is nothing to compare with")
    source = Path(found.origin).parent / "runtime" / "zero" / "config.py"
    assert set(ZERO) == zero_fields(source.read_text())
    assert not set(KNOWN) & set(OURS)


def zero_fields(source: str) -> set[str]:
    """Fields and aliases of DeepSpeedZeroConfig, read without the seconds of an import."""
    names: set[str] = set()
    for cls in ast.parse(source).body:
        if not (isinstance(cls, ast.ClassDef) and cls.name == "DeepSpeedZeroConfig"):
            continue
        for field in cls.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                names.add(field.target.id)
                keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
                names |= {ast.literal_eval(k.value) for k in keywords if k.arg == "alias"}
    return names


def test_every_field_that_saves_or_launches_is_reserved() -> None:
    ours = ("save_", "hub_", "push_to_hub", "ddp_", "fsdp", "resume", "trackio_", "restore_")
    for name in table.table("training"):
        if name.startswith(ours):
            assert reserved.replacement("training", name), name


@pytest.mark.parametrize("block", table.BLOCKS)
def test_filled_fields_are_usable(block: Block) -> None:
    assert set(_FILLED[block]) <= set(table.usable(block))


def test_renamed_fields_are_gone() -> None:
    assert not set(reserved.RENAMED) & set(table.table("training"))
    assert set(reserved.FORCED) <= set(table.table("training"))


def test_importing_the_package_is_cheap() -> None:
    import subprocess

    code = (
        "import sys, orchestrator.config;"
        "heavy = {'pydantic', 'yaml', 'json', 'tomllib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_libraries_take_what_is_resolved(folder: Folder) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, TrainingArguments

    job = folder.resolve("training.activation_checkpointing=true")
    arguments = TrainingArguments(**job.training, output_dir=str(folder.path), use_cpu=True)
    assert arguments.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert LoraConfig(**job.lora).r == 8
    assert BitsAndBytesConfig(**job.quantization).load_in_4bit
