"""The schema for editors, the file of `init`, and the shipped examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.load import load_job, parse_job
from orchestrator.config.reading.document import parse
from orchestrator.config.schema import json_schema
from orchestrator.config.starter import init_text
from orchestrator.contract.jsonio import canonical
from tests.unit.config.conftest import JOB, Folder

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("**/job.yaml"))


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that ours uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema and not any(fits(value, option, root) for option in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    return is_of_type(value, schema.get("type")) and parts_fit(value, schema, root)


def is_of_type(value: Any, wanted: Any) -> bool:
    kinds = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "null": value is None,
    }
    names = wanted if isinstance(wanted, list) else [wanted]
    return wanted is None or any(kinds[name] for name in names)


def parts_fit(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {}), root) for item in value)
    if not isinstance(value, dict):
        return True
    known, more = schema.get("properties", {}), schema.get("additionalProperties", {})
    if not set(schema.get("required", ())) <= set(value):
        return False
    for key, item in value.items():
        part = known.get(key, more)
        if part is False or not fits(item, {} if part is True else part, root):
            return False
    return True


def test_the_schema_is_json_and_lists_the_fields_of_the_libraries() -> None:
    schema = json_schema()
    canonical(schema)
    training = schema["properties"]["training"]["properties"]
    assert "cosine" in training["lr_scheduler_type"]["enum"]
    assert "output_dir" not in training
    assert "load_in_4bit" in schema["properties"]["quantization"]["properties"]
    assert "llm" in schema["properties"]["lora"]["properties"]["target_modules"]["anyOf"][0]["enum"]
    assert schema["required"] == ["name", "model", "data"]


@pytest.mark.parametrize("text", [JOB, init_text(), *(p.read_text() for p in EXAMPLES)])
def test_the_schema_accepts_good_jobs(text: str) -> None:
    schema = json_schema()
    assert fits(parse(text, "job.yaml").data, schema, schema)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 7", "sead: 7"),
        ("nf4", "nf5"),
        ("backend: local ", "backend: lokal "),
        ("cosine", "cosin"),
        ("max_steps: 40", "max_steps: a"),
        ("keep_last: 2", "keep: 2"),
        ("stage: 2", "stage: 3"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(old: str, new: str) -> None:
    schema = json_schema()
    assert not fits(parse(JOB.replace(old, new), "job.yaml").data, schema, schema)


def test_every_setting_of_the_schema_is_described() -> None:
    schema = json_schema()
    for name, entry in schema["properties"].items():
        assert entry.get("description"), name
    for section, entry in schema["$defs"].items():
        for name, field in entry["properties"].items():
            assert field.get("description"), f"{section}.{name}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_validate(path: Path) -> None:
    assert load_job(path).spec.name


def test_there_are_examples() -> None:
    assert ROOT / "examples" / "job.yaml" in EXAMPLES


def test_the_file_of_init_validates() -> None:
    loaded = parse_job(init_text("my-job", model="a b/model: x", gpus=4), Path("job.yaml"))
    assert loaded.spec.name == "my-job"
    assert loaded.spec.model.path == "a b/model: x"
    assert loaded.spec.resources.gpus_per_node == 4


def test_the_file_of_init_resolves_where_its_files_are(folder: Folder) -> None:
    folder.job.write_text(init_text())
    job = folder.resolve()
    assert job.batch.global_batch == 8
    assert job.training["max_steps"] == 1000


@pytest.mark.parametrize("text", ["true", "null", "1e5", "#x", "- a", "a: b", "'", "~", "[", "é"])
def test_names_given_to_init_stay_text(text: str) -> None:
    assert parse(init_text(model=text), "job.yaml").data["model"]["path"] == text


def test_the_commented_settings_of_init_are_right() -> None:
    skipped = ("config:", "eval_strategy:", "secrets:")
    lines = [
        line
        if any(word in line for word in skipped)
        else re.sub(r"^( *)# ?( *\w+:)", r"\1\2", line)
        for line in init_text().splitlines()
    ]
    text = "\n".join(lines)
    spec = parse_job(text, Path("job.yaml")).spec
    assert spec.training.bf16 is True
    assert spec.env == {"OMP_NUM_THREADS": "1"}
    assert spec.preemption.max_failures_without_progress == 3


def test_init_mentions_every_setting_that_has_an_effect() -> None:
    schema = json_schema()
    text = init_text()
    for entry in [schema, *schema["$defs"].values()]:
        for name, field in entry["properties"].items():
            mentioned = re.search(rf"\b{name}:", text) is not None
            assert mentioned != bool(field.get("deprecated")), name


def test_the_schema_knows_the_fields_of_backends() -> None:
    defined = json_schema()["$defs"]
    for name in ("SlurmSection", "KubernetesSection", "Mount", "Toleration"):
        assert defined[name]["additionalProperties"] is False
    assert defined["KubernetesSection"]["properties"]["image_pull_policy"]["anyOf"][0] == {
        "enum": ["Always", "IfNotPresent", "Never"],
        "type": "string",
    }
