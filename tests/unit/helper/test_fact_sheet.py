"""The facts of an attempt: digests that change with contents, and only with them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract.resolved import DataSpec, ModelSpec, ResolvedJob
from orchestrator.domain.resume import compare, refusal
from orchestrator.errors import UserError
from orchestrator.helper import facts
from orchestrator.storage.memory import MemoryStorage
from tests.unit.helper.test_claimer import JOB


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "pics").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "pics" / name).write_bytes(b"picture " + name.encode())
    samples = [{"image": f"pics/{n}.png", "conversations": []} for n in (1, 2)]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    code = tmp_path / "code"
    code.mkdir()
    (code / "extra.py").write_text("x = 1\n")
    return replace(
        JOB,
        model=ModelSpec(path=str(model)),
        data=DataSpec(train=str(tmp_path / "train.json")),
        code=(str(code),),
        quantization={"load_in_4bit": True, "nested": {"a": [1, 2]}},
        lora={"r": 8},
    )


@pytest.fixture
def collect(memory: MemoryStorage, job: ResolvedJob) -> Any:
    return lambda job=job: facts.collect(job, memory)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {k for k in before | after if before.get(k) != after.get(k)}


def test_the_sheet(collect: Any) -> None:
    found = collect()
    for name, value in {
        "world.nodes": 1,
        "world.gpus_per_node": 2,
        "world.zero_stage": 2,
        "global_batch": 24,
        "config.lora.r": 8,
        "quantization.load_in_4bit": True,
        "quantization.nested.a": [1, 2],
        "checkpoint_format": 1,
    }.items():
        assert found[name] == value
    assert found["version.torch"]
    for name in ("model.digest", "data.train", "data.media", "code.digest"):
        assert len(found[name]) == 64
    json.dumps(found)


def test_twice_the_same(collect: Any) -> None:
    assert collect() == collect()
    assert compare(collect(), json.loads(json.dumps(collect()))) == []


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, collect: Any) -> None:
    monkeypatch.setattr(facts, "PACKAGES", ("no-such-package",))
    assert collect()["version.no-such-package"] is None


# --- model


def test_the_model_digest_is_cached_by_size_and_time(
    collect: Any, job: ResolvedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = facts.file_sha256
    monkeypatch.setattr(facts, "file_sha256", lambda p: read.append(p.name) or real(p))
    first = collect()["model.digest"]
    assert {"config.json", "model.safetensors"} <= set(read)
    read.clear()
    assert collect()["model.digest"] == first
    assert not {"config.json", "model.safetensors"} & set(read)
    file = Path(job.model.path) / "sub" / "model.safetensors"
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(1, 1))
    assert collect()["model.digest"] != first
    assert "model.safetensors" in read
    assert "config.json" not in read


def test_a_touched_but_equal_model_is_equal(collect: Any, job: ResolvedJob) -> None:
    first = collect()["model.digest"]
    os.utime(Path(job.model.path) / "config.json", ns=(1, 1))
    assert collect()["model.digest"] == first


def test_an_equal_model_elsewhere_is_equal(collect: Any, job: ResolvedJob, tmp_path: Path) -> None:
    first = collect()["model.digest"]
    os.rename(job.model.path, tmp_path / "moved")
    moved = replace(job, model=ModelSpec(path=str(tmp_path / "moved")))
    assert collect(moved)["model.digest"] == first


@pytest.mark.parametrize("how", ["new file", "renamed", "removed"])
def test_files_that_come_and_go_change_the_model(collect: Any, job: ResolvedJob, how: str) -> None:
    first = collect()["model.digest"]
    folder = Path(job.model.path)
    if how == "new file":
        (folder / "x.json").write_text("")
    elif how == "renamed":
        (folder / "config.json").rename(folder / "c.json")
    else:
        (folder / "config.json").unlink()
    assert collect()["model.digest"] != first


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"x": 1}'])
def test_a_damaged_cache_is_made_anew(memory: MemoryStorage, collect: Any, data: bytes) -> None:
    first = collect()["model.digest"]
    memory.put("cache/base-files.json", data)
    assert collect()["model.digest"] == first


def test_a_model_of_the_hub_is_known_by_its_revision(collect: Any, job: ResolvedJob) -> None:
    found = collect(replace(job, model=ModelSpec(path="Qwen/Qwen2.5-VL", revision="abc")))
    assert found["model.revision"] == "abc"
    assert found["model.id"] == "Qwen/Qwen2.5-VL"
    assert "model.digest" not in found


# --- data


def test_an_index_that_changes(collect: Any, job: ResolvedJob) -> None:
    before = collect()
    Path(job.data.train).write_text(Path(job.data.train).read_text() + "\n")
    assert changed(before, collect()) == {"data.train"}


def test_a_medium_that_changes_its_size(collect: Any, tmp_path: Path) -> None:
    before = collect()
    (tmp_path / "pics" / "1.png").write_bytes(b"longer than it was before")
    assert changed(before, collect()) == {"data.media"}


def test_a_medium_that_is_gone(collect: Any, tmp_path: Path) -> None:
    before = collect()
    (tmp_path / "pics" / "1.png").unlink()
    assert changed(before, collect()) == {"data.media"}


def test_contents_of_media_count_only_in_full(
    collect: Any, job: ResolvedJob, tmp_path: Path
) -> None:
    full = replace(job, data=replace(job.data, fingerprint="full"))
    paths, whole = collect(), collect(full)
    (tmp_path / "pics" / "1.png").write_bytes(b"PICTURE 1.png")
    assert collect() == paths
    assert changed(whole, collect(full)) == {"data.media"}


def test_an_evaluation_set(collect: Any, job: ResolvedJob, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"image": "pics/2.png"}\n')
    before = collect()
    after = collect(replace(job, data=replace(job.data, eval=str(tmp_path / "eval.jsonl"))))
    assert changed(before, after) == {"data.eval", "config.data.eval"}


def test_media_of_another_root(collect: Any, job: ResolvedJob, tmp_path: Path) -> None:
    data = replace(job.data, media_root=str(tmp_path / "elsewhere"))
    assert "data.media" in changed(collect(), collect(replace(job, data=data)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"[1]", "record 0: int instead of an object"),
        (b'{"a": 1}\n{', "line 2: not JSON"),
        (b"\xff", "line 1: not UTF-8"),
    ],
)
def test_an_index_that_cannot_be_read(
    collect: Any, job: ResolvedJob, content: bytes | None, text: str
) -> None:
    path = Path(job.data.train)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=text) as caught:
        collect()
    assert str(path) in caught.value.message


# --- code


def test_code_that_changes(collect: Any, tmp_path: Path) -> None:
    before = collect()
    (tmp_path / "code" / "extra.py").write_text("x = 2\n")
    assert changed(before, collect()) == {"code.digest"}
    assert "user code" in (refusal(compare(before, collect()), "c") or "")


def test_hidden_and_compiled_files_do_not_count(collect: Any, tmp_path: Path) -> None:
    before = collect()
    for name in (".git/objects/ab/cd/x", "__pycache__/a.pyc", "deep/a/b/c/.idea/w/x/y/z"):
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert collect() == before


def test_code_inside_a_hidden_folder_counts(tmp_path: Path) -> None:
    root = tmp_path / ".projects" / "mine"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a.py").write_text("1")
    first = facts.tree_digest([root])
    assert first is not None
    (root / "pkg" / "a.py").write_text("2")
    assert facts.tree_digest([root]) != first


def test_a_single_file_of_code(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("1")
    first = facts.tree_digest([file])
    assert first is not None
    file.write_text("2")
    assert facts.tree_digest([file]) != first


def test_no_code() -> None:
    assert facts.tree_digest([]) is None
