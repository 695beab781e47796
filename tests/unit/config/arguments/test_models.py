"""The models equal the installed packages; the lists of reserved words fit them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.config.arguments import reserved
from orchestrator.config.arguments.base import Arguments
from orchestrator.config.arguments.deepspeed import OURS, DeepSpeedFile
from orchestrator.config.models.library import LoraSection, QuantizationSection, TrainingSection
from orchestrator.config.resolving.job import _FILLED
from tests.unit.config.conftest import Folder

SECTIONS: dict[str, type[Arguments]] = {
    "training": TrainingSection,
    "lora": LoraSection,
    "quantization": QuantizationSection,
}
ROOT = Path(__file__).parents[4]


def generator() -> ModuleType:
    path = ROOT / "tools" / "gen_argument_models.py"
    spec = importlib.util.spec_from_file_location("gen_argument_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_models_equal_the_installed_versions() -> None:
    for package in ("transformers", "peft", "torch", "deepspeed"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the models have nothing to be compared with")
    made = generator()
    for name, text in made.texts().items():
        assert (made.ARGUMENTS / name).read_text() == text, "run tools/gen_argument_models.py"


def test_what_a_deepspeed_file_may_give_is_not_ours() -> None:
    assert not set(DeepSpeedFile.model_fields) & set(OURS)


def test_every_field_that_saves_or_launches_is_reserved() -> None:
    ours = ("save_", "hub_", "push_to_hub", "ddp_", "fsdp", "resume", "trackio_", "restore_")
    for name in TrainingSection.model_fields:
        assert not name.startswith(ours), name


@pytest.mark.parametrize("block", SECTIONS)
def test_reserved_fields_are_not_the_job_s(block: str) -> None:
    for name in SECTIONS[block].model_fields:
        assert reserved.reserved(block, name) is None, name
        assert reserved.renamed(block, name) is None, name


@pytest.mark.parametrize("block", _FILLED)
def test_filled_fields_are_usable(block: str) -> None:
    assert set(_FILLED[block]) <= set(SECTIONS[block].model_fields)


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
