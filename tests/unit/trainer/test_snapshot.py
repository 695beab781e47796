"""Snapshots of the quantized base: the same tensors come back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.contract.resolved import ModelSpec, ResolvedJob
from orchestrator.errors import CheckpointError, StorageError
from orchestrator.storage.posix import PosixStorage
from trainer.base_model.modeling import BasePlan, base_digest, base_tensors, load_model
from trainer.base_model.quantization import Base, base_files
from trainer.base_model.snapshot import KEEP_DAYS, SnapshotCache, key_of, look, open_cache
from trainer.base_model.watch import BaseWatch
from trainer.collectives.group import Solo

pytestmark = pytest.mark.filterwarnings("default")  # of transformers, peft and bitsandbytes
CPU = torch.device("cpu")
FACTS: dict[str, Any] = {
    "model.digest": "a" * 64,
    "version.torch": "2.13",
    "version.transformers": "5.23",
    "version.bitsandbytes": "0.50",
    "version.peft": "0.21",
}
SMALL = [("config.json", b"{}"), ("model.safetensors", b"weights" * 100)]


class Day:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def store(cache: SnapshotCache, files: list[tuple[str, bytes]] = SMALL) -> Any:
    produced = [(name, lambda sink, data=data: sink.write(data)) for name, data in files]
    return cache.store(produced, "blake3:base", "a-run")  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path) -> SnapshotCache:
    return SnapshotCache(PosixStorage(tmp_path), "key")


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# --- the store


def test_what_was_stored_is_found_and_verified(cache: SnapshotCache) -> None:
    assert look(cache, 0, 1) == (None, None)
    stored = store(cache)
    assert look(cache, 0, 1) == (stored, None)
    assert (cache.place(stored) / "config.json").read_bytes() == b"{}"
    assert stored.base_digest == "blake3:base"


@pytest.mark.parametrize("fault", ["flipped", "short", "long", "missing"])
def test_a_damaged_file_is_not_believed(cache: SnapshotCache, fault: str) -> None:
    stored = store(cache)
    path = cache.place(stored) / "model.safetensors"
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"flipped": flipped, "short": data[:-1], "long": data + b"x"}[fault])
    shares = [look(cache, part, 2)[1] for part in range(2)]
    assert [text for text in shares if text] == [
        "model.safetensors is missing"
        if fault == "missing"
        else "model.safetensors is not what was stored"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"folder": ".."},
        {"folder": "../../etc"},
        {"files": [{"path": "../x", "size_bytes": 1, "hash": "blake3:" + "0" * 64}]},
        {"files": "none"},
    ],
)
def test_a_hostile_manifest_is_refused(
    cache: SnapshotCache, tmp_path: Path, change: dict[str, Any]
) -> None:
    store(cache)
    path = tmp_path / "key/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError):
        cache.find()


def test_one_of_two_writers_wins_and_the_other_leaves_nothing(
    tmp_path: Path, cache: SnapshotCache
) -> None:
    winners: list[Any] = []

    def slow(sink: Any) -> None:
        winners.append(store(SnapshotCache(PosixStorage(tmp_path), "key")))
        sink.write(b"late")

    assert cache.store([("model.safetensors", slow)], "blake3:late", "b-run") is None
    found, fault = look(cache, 0, 1)
    assert (found, fault) == (winners[0], None)
    assert files_below(tmp_path / "key") == {
        "manifest.json",
        "used.json",
        *(f"{winners[0].folder}/{name}" for name, _ in SMALL),
    }


def test_a_writer_that_fails_leaves_no_snapshot(tmp_path: Path, cache: SnapshotCache) -> None:
    def fail(_sink: Any) -> None:
        raise StorageError("no space")

    with pytest.raises(StorageError):
        cache.store([("a", lambda sink: sink.write(b"x")), ("b", fail)], "blake3:x", "a-run")
    assert cache.find() is None
    assert files_below(tmp_path) <= {"key/used.json"}


def test_what_cannot_be_believed_is_replaced(cache: SnapshotCache, tmp_path: Path) -> None:
    first = store(cache)
    (tmp_path / "key" / first.folder / "config.json").write_bytes(b"[]")
    cache.discard()
    second = store(cache)
    assert second.folder != first.folder
    assert look(cache, 0, 1) == (second, None)


def test_unused_snapshots_and_leftovers_go_when_one_is_stored(tmp_path: Path) -> None:
    day, storage = Day(), PosixStorage(tmp_path)
    for key in ("old", "fresh"):
        store(SnapshotCache(storage, key, clock=day))
    (tmp_path / "key/deadbeef").mkdir(parents=True)
    (tmp_path / "key/deadbeef/model.safetensors").write_bytes(b"half")
    day.time += KEEP_DAYS * 86400 - 1
    SnapshotCache(storage, "fresh", clock=day).touch()
    day.time += 2
    mine = SnapshotCache(storage, "key", clock=day)
    stored = store(mine)
    assert {name.split("/")[0] for name in files_below(tmp_path)} == {"fresh", "key"}
    assert not (tmp_path / "key/deadbeef").exists()
    assert look(mine, 0, 1) == (stored, None)


# --- the key


def test_the_key_tells_apart_what_the_tensors_depend_on(job: Callable[..., ResolvedJob]) -> None:
    plain = job()
    nf4 = dict(plain.quantization)
    others = [
        (plain, {**FACTS, "model.digest": "b" * 64}, "cpu"),
        (plain, {**FACTS, "version.torch": "2.14"}, "cpu"),
        (plain, {**FACTS, "version.transformers": "5.24"}, "cpu"),
        (plain, {**FACTS, "version.bitsandbytes": "0.51"}, "cpu"),
        (plain, FACTS, "cuda"),
        (job(quantization={**nf4, "bnb_4bit_quant_type": "fp4"}), FACTS, "cpu"),
        (job(quantization={**nf4, "bnb_4bit_use_double_quant": False}), FACTS, "cpu"),
    ]
    keys = {key_of(*other) for other in others}
    assert None not in keys
    assert len(keys | {key_of(plain, FACTS, "cpu")}) == len(others) + 1
    assert key_of(plain, {**FACTS, "version.peft": "1"}, "cpu") == key_of(plain, FACTS, "cpu")


def test_no_snapshot_where_none_is_wanted_or_none_can_be_told_apart(
    job: Callable[..., ResolvedJob],
) -> None:
    plain = job()
    off = dataclasses.replace(plain.model, snapshot="off")
    remote = dataclasses.replace(plain.checkpoint, uri="s3://bucket/runs")
    assert open_cache(plain, FACTS, "cpu") is not None
    assert open_cache(job(checkpoint=remote), FACTS, "cpu") is None
    for other, facts in (
        (job(model=off), FACTS),
        (job(quantization={}), FACTS),
        (job(zero_stage=3), FACTS),
        (plain, {"version.torch": "2.13"}),
    ):
        assert key_of(other, facts, "cpu") is None
    hub = job(model=ModelSpec(path="a/b", revision="c"))
    assert key_of(hub, {"model.id": "a/b", "model.revision": "c"}, "cpu")


# --- the tensors


class Told:
    """A rank that notes what it says."""

    number = 0

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.events: list[dict[str, Any]] = []

    def warn(self, _key: str, text: str) -> None:
        self.warnings.append(text)

    def event(self, kind: str, **data: Any) -> None:
        self.events.append({"kind": kind, **data})


@dataclasses.dataclass
class Assigned:
    """What `Base` asks of an assignment."""

    job: ResolvedJob
    run_id: str = "b-run"
    facts: Any = dataclasses.field(default_factory=lambda: FACTS)


def source(job: ResolvedJob, told: Told, recorded: str | None = None) -> Base:
    return Base(told, Assigned(job), Solo(), CPU, recorded)  # type: ignore[arg-type]


def seeded(job: ResolvedJob, snapshot: Path | None) -> Any:
    torch.manual_seed(7)
    return load_model(job, CPU, snapshot)


@pytest.fixture
def at(job: Callable[..., ResolvedJob], tmp_path: Path) -> Callable[..., ResolvedJob]:
    """Jobs whose runs, and so the snapshots, lie in this test's folder."""

    def make(family: str = "qwen2_5_vl", **changes: Any) -> ResolvedJob:
        made = job(family, **changes)
        spec = dataclasses.replace(made.checkpoint, uri=str(tmp_path / "runs"))
        return dataclasses.replace(made, checkpoint=spec)

    return make


def stored_by(job: ResolvedJob) -> tuple[Any, str]:
    """A model quantized anew whose base was stored, and the base's digest."""
    loaded = seeded(job, None)
    digest = base_digest(loaded.model)
    cache = open_cache(job, FACTS, "cpu")
    assert cache is not None
    tensors = base_tensors(loaded.model, loaded.base_plan)
    assert cache.store(base_files(tensors, loaded.base_plan, lambda: None), digest, "a-run")
    return loaded, digest


@pytest.mark.torch
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_loaded_base_is_the_one_quantized_anew(
    at: Callable[..., ResolvedJob], family: str
) -> None:
    anew, digest = stored_by(at(family))
    random = torch.get_rng_state()
    told, folders = Told(), []

    def load(snapshot: Path | None) -> Any:
        folders.append(snapshot)
        return seeded(at(family), snapshot)

    loaded = source(at(family), told, recorded=digest).load(load)
    assert folders[0] is not None
    assert [e["how"] for e in told.events] == ["loaded"]
    assert told.warnings == []
    assert torch.equal(torch.get_rng_state(), random)
    assert base_digest(loaded.model) == digest
    assert loaded.base_plan == anew.base_plan
    assert loaded.model.peft_config == anew.model.peft_config
    assert str(folders[0]) not in loaded.model.config.to_json_string()
    before, after = anew.model.state_dict(), loaded.model.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    buffers = dict(loaded.model.named_buffers())
    for name, tensor in anew.model.named_buffers():
        assert torch.equal(tensor, buffers[name]), name


@pytest.mark.torch
@pytest.mark.parametrize("how", ["flipped", "recorded"])
def test_a_snapshot_that_does_not_fit_is_said_and_removed(
    at: Callable[..., ResolvedJob], tmp_path: Path, how: str
) -> None:
    _, digest = stored_by(at())
    if how == "flipped":
        weights = next((tmp_path / "runs").rglob("*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    told, folders = Told(), []
    base = source(at(), told, recorded=digest if how == "flipped" else "blake3:other")
    base.load(folders.append)  # type: ignore[arg-type, return-value, func-returns-value]
    assert folders == [None]
    assert told.events == []
    assert len(told.warnings) == 1
    assert "quantized anew" in told.warnings[0]
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.torch
def test_a_snapshot_of_other_settings_is_not_taken(at: Callable[..., ResolvedJob]) -> None:
    job = at()
    stored_by(job)
    other = dataclasses.replace(
        job, quantization={**job.quantization, "bnb_4bit_quant_type": "fp4"}
    )
    folders: list[Path | None] = []
    source(other, Told()).load(folders.append)  # type: ignore[arg-type, return-value, func-returns-value]
    assert folders == [None]


@pytest.mark.torch
def test_tensors_that_lost_digits_are_not_stored() -> None:
    plan = BasePlan(types={"w": torch.float16}, files={})
    assert plan.dtype("w", torch.zeros(1)) == torch.float16
    with pytest.raises(ValueError, match="was loaded as"):
        plan.dtype("w", torch.zeros(1, dtype=torch.bfloat16))


class Board:
    """A notice board that is raised from the start, or never."""

    def __init__(self, raised: bool) -> None:
        self.raised = raised


@pytest.mark.torch
@pytest.mark.parametrize("noticed", [False, True])
def test_a_keeper_stores_once_and_gives_way_to_a_notice(
    at: Callable[..., ResolvedJob], tmp_path: Path, noticed: bool
) -> None:
    told = Told()
    told.board = Board(noticed)  # type: ignore[attr-defined]
    base = source(at(), told)
    loaded = base.load(lambda snapshot: seeded(at(), snapshot))
    watch = BaseWatch(lambda: base_digest(loaded.model))
    watch.start()
    keeper = base.keeper(loaded, watch)
    assert keeper is not None
    for _ in range(2):
        keeper.begin()
    assert keeper._thread is not None
    keeper._thread.join(60)
    keeper.close()
    assert told.warnings == []
    assert [e["how"] for e in told.events] == ([] if noticed else ["stored"])
    assert len(list((tmp_path / "runs").rglob("*.safetensors"))) == (not noticed)
    again = source(at(), told)
    again.load(lambda snapshot: seeded(at(), snapshot))
    assert (again.keeper(loaded, watch) is None) == (not noticed)
