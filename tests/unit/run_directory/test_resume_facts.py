"""The facts of the resume contract: what changes them, what does not, and what is not read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.contract import layout
from orchestrator.contract.jsonio import canonical, loads, unseal
from orchestrator.contract.plan import BatchPlan
from orchestrator.contract.resolved import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    PreemptionSpec,
    ResolvedJob,
    Resources,
)
from orchestrator.domain.resume import compare, refusal
from orchestrator.errors import StorageError, UserError
from orchestrator.run_directory import resume_facts as fact_sheet
from orchestrator.storage.memory import MemoryStorage


@pytest.fixture
def storage(memory: MemoryStorage) -> MemoryStorage:
    return memory


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    """A model of two files, three samples with pictures, code inside a hidden folder."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "sub" / "w.bin").write_bytes(b"weights")
    (tmp_path / "images").mkdir()
    for n in range(3):
        (tmp_path / "images" / f"{n}.png").write_bytes(b"p" * (n + 1))
    samples = [{"image": f"images/{n}.png", "conversations": []} for n in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(samples))
    (tmp_path / ".hidden" / "code" / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden" / "code" / "deep" / "er" / "a.py").write_text("x = 1")
    return ResolvedJob(
        name="j",
        backend="local",
        model=ModelSpec(path=str(tmp_path / "model")),
        quantization={"load_in_4bit": True, "nested": {"a": [1, 2]}},
        lora={"r": 8},
        data=DataSpec(train=str(tmp_path / "train.json")),
        training={"seed": 7},
        deepspeed={"zero_optimization": {"stage": 2}},
        zero_stage=2,
        resources=Resources(nodes=1, gpus_per_node=2),
        checkpoint=CheckpointSpec(uri=str(tmp_path / "runs")),
        preemption=PreemptionSpec(grace_s=60),
        batch=BatchPlan(micro=2, accumulation=3, world_size=2),
        code=(str(tmp_path / ".hidden" / "code"),),
    )


def changed(
    job: ResolvedJob,
    storage: MemoryStorage,
    act: Callable[[], object],
    then: ResolvedJob | None = None,
) -> set[str]:
    """Names of the facts that `act` changes."""
    before = fact_sheet.collect(job, storage)
    act()
    after = fact_sheet.collect(then or job, storage)
    return {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def test_the_sheet(job: ResolvedJob, storage: MemoryStorage) -> None:
    found = fact_sheet.collect(job, storage)
    for name, value in {
        "world.nodes": 1,
        "world.gpus_per_node": 2,
        "world.zero_stage": 2,
        "global_batch": 12,
        "config.lora.r": 8,
        "quantization.load_in_4bit": True,
        "quantization.nested.a": [1, 2],
        "checkpoint_format": 1,
    }.items():
        assert found[name] == value
    for name in ("model.digest", "data.train", "data.media", "code.digest"):
        assert len(found[name]) == 64
    assert {k for k in found if k.startswith("version.")} == {
        f"version.{n}"
        for n in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
    }


def test_facts_are_plain_json_and_repeatable(job: ResolvedJob, storage: MemoryStorage) -> None:
    found = fact_sheet.collect(job, storage)
    stored = loads(canonical(found))
    assert stored == found
    again = fact_sheet.collect(job, MemoryStorage(f"{storage.uri}-other"))
    assert again == found
    assert compare(stored, again) == []


def test_the_model_is_hashed_once(
    job: ResolvedJob, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fact_sheet.model_facts(job, storage)
    read: list[Path] = []
    real = fact_sheet.file_sha256
    monkeypatch.setattr(fact_sheet, "file_sha256", lambda p: read.append(p) or real(p))
    assert fact_sheet.model_facts(job, storage) == first
    assert read == []
    weights = Path(job.model.path) / "sub" / "w.bin"
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(1, 1))
    assert fact_sheet.model_facts(job, storage) != first
    assert read == [weights]


@pytest.mark.parametrize("cache", [b"", b"[]", b"{", b'{"x": 1}', None])
def test_a_damaged_cache_is_only_slow(
    job: ResolvedJob, storage: MemoryStorage, cache: bytes | None
) -> None:
    first = fact_sheet.model_facts(job, storage)
    if cache is None:
        entries = unseal(storage.get(layout.BASE_CACHE))
        cache = canonical({k: {"stamp": v["stamp"]} for k, v in entries.items()})
    storage.put(layout.BASE_CACHE, cache)
    assert fact_sheet.model_facts(job, storage) == first
    assert all(len(v["sha256"]) == 64 for v in unseal(storage.get(layout.BASE_CACHE)).values())


def test_a_touched_but_equal_model_is_equal(job: ResolvedJob, storage: MemoryStorage) -> None:
    config = Path(job.model.path) / "config.json"
    assert changed(job, storage, lambda: os.utime(config, ns=(1, 1))) == set()


def test_a_model_file_added_renamed_or_removed_is_another_model(
    job: ResolvedJob, storage: MemoryStorage
) -> None:
    folder = Path(job.model.path)
    for act in (
        lambda: (folder / "new").write_bytes(b""),
        lambda: (folder / "new").rename(folder / "newer"),
        lambda: (folder / "newer").unlink(),
    ):
        assert changed(job, storage, act) == {"model.digest"}


def test_a_moved_model_is_the_same(job: ResolvedJob, storage: MemoryStorage) -> None:
    target = Path(job.model.path).with_name("moved")
    moved = replace(job, model=ModelSpec(path=str(target)))
    found = changed(job, storage, lambda: Path(job.model.path).rename(target), moved)
    assert found == {"config.model.path"}


def test_a_hub_model_is_known_by_its_revision(job: ResolvedJob, storage: MemoryStorage) -> None:
    hub = replace(job, model=ModelSpec(path="Qwen/Q", revision="abc"))
    found = fact_sheet.collect(hub, storage)
    assert (found["model.id"], found["model.revision"]) == ("Qwen/Q", "abc")
    assert "model.digest" not in found


def test_the_index_and_each_medium_are_the_data(
    job: ResolvedJob, storage: MemoryStorage, tmp_path: Path
) -> None:
    index, picture = Path(job.data.train), tmp_path / "images" / "1.png"
    assert changed(job, storage, lambda: index.write_text(index.read_text() + "\n")) == {
        "data.train"
    }
    assert changed(job, storage, lambda: picture.write_bytes(b"longer")) == {"data.media"}
    assert changed(job, storage, lambda: picture.write_bytes(b"LONGER")) == set()
    assert changed(job, storage, picture.unlink) == {"data.media"}


def test_a_full_fingerprint_reads_the_contents(
    job: ResolvedJob, storage: MemoryStorage, tmp_path: Path
) -> None:
    full = replace(job, data=replace(job.data, fingerprint="full"))
    picture = tmp_path / "images" / "1.png"
    assert changed(full, storage, lambda: picture.write_bytes(b"PP")) == {"data.media"}


def test_an_evaluation_set_counts(job: ResolvedJob, storage: MemoryStorage, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"image": "images/0.png"}\n')
    more = replace(job, data=replace(job.data, eval=str(tmp_path / "eval.jsonl")))
    assert changed(job, storage, lambda: None, more) == {"data.eval", "config.data.eval"}


def test_media_of_another_root(job: ResolvedJob, storage: MemoryStorage, tmp_path: Path) -> None:
    other = replace(job, data=replace(job.data, media_root=str(tmp_path / "elsewhere")))
    assert changed(job, storage, lambda: None, other) == {"data.media", "config.data.media_root"}


def test_media_that_are_no_files_are_no_fault(
    job: ResolvedJob, storage: MemoryStorage, tmp_path: Path
) -> None:
    strange = ["http://x/y.png", "data:image/png;base64," + "A" * 5000, "images", "a\0b", "\ud83d"]
    Path(job.data.train).write_text(json.dumps([{"images": strange}]))
    assert len(fact_sheet.collect(job, storage)["data.media"]) == 64


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"{", "not JSON"),
        (b"nonsense", "not JSON"),
        (b"[1]", "record 0: int instead of an object"),
        (b'[{"a": 1}, 2]', "record 1: int instead of an object"),
        (b'{"a": 1}\n{', "line 2: not JSON"),
        (b"\xff", "line 1: not UTF-8"),
    ],
)
def test_an_index_that_cannot_be_read_is_the_users_fault(
    job: ResolvedJob, storage: MemoryStorage, content: bytes | None, text: str
) -> None:
    path = Path(job.data.train)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=text) as caught:
        fact_sheet.collect(job, storage)
    assert str(path) in caught.value.message


def test_an_empty_index_is_read(job: ResolvedJob, storage: MemoryStorage) -> None:
    Path(job.data.train).write_text("")
    assert fact_sheet.collect(job, storage)["data.train"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_medium_whose_name_cannot_exist_counts_as_missing(
    job: ResolvedJob, storage: MemoryStorage, name: str
) -> None:
    """The job's data policy decides about the sample; its name still tells data sets apart."""
    digests = set()
    for given in (name, name + "2"):
        Path(job.data.train).write_text(json.dumps([{"image": given}]))
        digests.add(fact_sheet.collect(job, storage)["data.media"])
    assert len(digests) == 2


@pytest.mark.parametrize("what", ["model", "data", "code"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, StorageError), (errno.ESTALE, StorageError), (errno.EACCES, UserError)],
)
def test_a_file_system_that_fails_now_is_not_the_users_fault(
    job: ResolvedJob,
    storage: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    number: int,
    kind: type[Exception],
) -> None:
    """A refusal would end the run; what passes is tried again."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "/somewhere")

    target = {"model": "model_facts", "data": "data_facts", "code": "tree_digest"}[what]
    monkeypatch.setattr(fact_sheet, target, fail)
    with pytest.raises(kind, match="/somewhere") as caught:
        fact_sheet.collect(job, storage)
    assert type(caught.value) is kind


def test_the_code_below_a_hidden_folder_counts(job: ResolvedJob, storage: MemoryStorage) -> None:
    file = Path(job.code[0]) / "deep" / "er" / "a.py"
    assert changed(job, storage, lambda: file.write_text("x = 2")) == {"code.digest"}
    assert changed(job, storage, lambda: file.rename(file.with_name("b.py"))) == {"code.digest"}


@pytest.mark.parametrize("name", [".git/objects/ab/cd/ef", "__pycache__/a.pyc", "deep/.x/y/z.py"])
def test_hidden_and_compiled_files_are_no_code(
    job: ResolvedJob, storage: MemoryStorage, name: str
) -> None:
    file = Path(job.code[0]) / name

    def add() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")

    assert changed(job, storage, add) == set()


def test_one_file_may_be_the_code(job: ResolvedJob, storage: MemoryStorage, tmp_path: Path) -> None:
    file = tmp_path / "hook.py"
    file.write_text("1")
    single = replace(job, code=(str(file),))
    assert changed(single, storage, lambda: file.write_text("2")) == {"code.digest"}
    assert fact_sheet.collect(replace(job, code=()), storage)["code.digest"] is None


def test_code_that_has_gone_is_a_difference(job: ResolvedJob, storage: MemoryStorage) -> None:
    file = Path(job.code[0]) / "deep" / "er" / "a.py"
    before = fact_sheet.collect(job, storage)
    file.unlink()
    text = refusal(compare(before, fact_sheet.collect(job, storage)), "checkpoint-5")
    assert text is not None
    assert "user code" in text
    assert "now (none)" in text


def test_a_smaller_micro_batch_is_no_difference(job: ResolvedJob, storage: MemoryStorage) -> None:
    before = fact_sheet.collect(job, storage)
    small = replace(job, batch=BatchPlan(micro=1, accumulation=6, world_size=2))
    assert compare(before, fact_sheet.collect(small, storage)) == []


def test_versions_are_those_installed(
    job: ResolvedJob, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise fact_sheet.metadata.PackageNotFoundError(name)
        return f"1.{name}"

    monkeypatch.setattr(fact_sheet.metadata, "version", version)
    found = fact_sheet.collect(job, storage)
    assert (found["version.torch"], found["version.peft"]) == (None, "1.peft")


def test_a_medium_that_cannot_be_read_now_is_not_a_missing_one(
    job: ResolvedJob, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a hiccup of the file system would look like other data, and hold the run."""
    real = Path.stat

    def stat(self: Path, **more: Any) -> os.stat_result:
        if self.name == "1.png":
            raise OSError(errno.EIO, "Input/output error", str(self))
        return real(self, **more)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(StorageError, match=r"1\.png"):
        fact_sheet.collect(job, storage)
