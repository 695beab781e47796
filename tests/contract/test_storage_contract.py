"""What every storage must do. A new kind of storage joins by one line in KINDS."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator.errors import StorageError
from orchestrator.storage.hashing import hash_bytes
from orchestrator.storage.memory import MemoryStorage
from orchestrator.storage.object_store.fsspec_client import FsspecClient
from orchestrator.storage.object_store.store import ObjectStorage
from orchestrator.storage.opening import open_storage
from orchestrator.storage.posix import PosixStorage
from orchestrator.storage.protocol import Created, Entry, NotFound, Storage, Taken, list_after

Opener = Callable[[], Storage]
"""Opens the same storage again, as another process would."""


def _memory(folder: Path) -> Opener:
    return lambda: MemoryStorage(f"memory://{folder}")


def _posix(folder: Path) -> Opener:
    return lambda: PosixStorage(folder / "a folder")


def _shared(folder: Path) -> Opener:
    return lambda: PosixStorage(folder / "shared", group_sharing=True)


def _fsspec(folder: Path) -> Opener:
    """The adapter for other stores, over the one file system that fsspec brings along."""
    files = fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)
    client = FsspecClient(files, "/bucket")
    return lambda: ObjectStorage("test://bucket/a prefix", client, "a prefix/")


KINDS = {"fsspec": _fsspec, "memory": _memory, "posix": _posix, "posix-shared": _shared}


@pytest.fixture(params=[*sorted(KINDS), pytest.param("s3", marks=pytest.mark.s3)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri")
        yield lambda: open_storage(f"{uri}/a prefix")
        return
    yield KINDS[request.param](tmp_path)
    MemoryStorage._spaces.pop(f"memory://{tmp_path}", None)


@pytest.fixture
def storage(opener: Opener) -> Storage:
    return opener()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
def test_put_and_get(storage: Storage, data: bytes) -> None:
    storage.put("a/b/c.json", data)
    assert storage.get("a/b/c.json") == data
    assert b"".join(bytes(c) for c in storage.read("a/b/c.json", 1000)) == data


def test_put_replaces(storage: Storage, opener: Opener) -> None:
    storage.put("a", b"long and old")
    storage.put("a", b"new")
    assert opener().get("a") == b"new"
    assert storage.list("") == [Entry("a", 3)]


def test_objects_are_seen_through_another_opening(opener: Opener) -> None:
    opener().put("x/y", b"1")
    assert opener().get("x/y") == b"1"


@pytest.mark.parametrize("there", ["", "x", "folder/x"])
def test_what_is_missing_is_not_found(storage: Storage, there: str) -> None:
    storage.put("folder/other", b"1")
    name = there or "nothing"
    for read in (lambda: storage.get(name), lambda: list(storage.read(name))):
        with pytest.raises(NotFound, match=name):
            read()


@pytest.mark.parametrize("name", ["folder", "folder/object/below"])
def test_a_folder_or_what_lies_below_an_object_is_not_found(storage: Storage, name: str) -> None:
    storage.put("folder/object", b"1")
    for read in (lambda: storage.get(name), lambda: list(storage.read(name))):
        with pytest.raises(NotFound):
            read()
    assert storage.list("folder/object/") == []


def test_create_is_once(storage: Storage, opener: Opener) -> None:
    assert storage.create("log/1", b"mine") == Created()
    assert opener().create("log/1", b"other") == Taken(b"mine")
    assert storage.get("log/1") == b"mine"


def test_a_repeated_create_of_the_same_bytes_is_a_lost_reply(opener: Opener) -> None:
    assert opener().create("log/1", b"token 1") == Created()
    assert opener().create("log/1", b"token 1") == Created()


def test_create_after_delete(storage: Storage) -> None:
    storage.create("a", b"1")
    storage.delete("a")
    assert storage.create("a", b"2") == Created()


def test_threads_race_and_one_wins(opener: Opener) -> None:
    for turn in range(10):
        outcomes: list[Created | Taken] = []
        start = threading.Barrier(16)

        def work(number: int, turn: int = turn) -> None:
            storage = opener()
            start.wait()
            outcomes.append(storage.create(f"log/{turn}", b"%d" % number))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(Created()) == 1
        assert set(outcomes) - {Created()} == {Taken(opener().get(f"log/{turn}"))}


def _race(folder: str, number: int, turns: int, start: object, results: object) -> None:
    storage = PosixStorage(Path(folder))
    won = []
    for turn in range(turns):
        start.wait()  # type: ignore[attr-defined]
        outcome = storage.create(f"new/{turn}/x", b"%d" % number * 50)
        if isinstance(outcome, Created):
            won.append(turn)
        else:
            assert len(set(outcome.by)) == 1
            assert len(outcome.by) == 50
    results.put(won)  # type: ignore[attr-defined]


def test_processes_race_and_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results, turns = context.Barrier(4), context.Queue(), 25
    workers = [
        context.Process(target=_race, args=(str(tmp_path / "r"), n, turns, start, results))
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    won = [turn for _ in workers for turn in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(won) == list(range(turns))


def test_a_long_folder_can_be_listed_from_a_name_on(storage: Storage) -> None:
    for number in range(12):
        storage.put(f"log/{number:03d}.json", b"1")
    storage.put("log/009/inside", b"1")
    storage.put("other", b"1")
    for after, wanted in (
        ("log/008.json", [9, 10, 11]),
        ("log/011.json", []),
        ("log/-01.json", range(12)),
    ):
        found = [e.path for e in list_after(storage, "log/", after)]
        assert found == [f"log/{number:03d}.json" for number in wanted]


def test_list_is_flat_or_deep_and_sorted(storage: Storage) -> None:
    for name in ("b/2", "b/10", "b/c/1", "a", "bb/1"):
        storage.put(name, b"12")
    assert storage.list("b/") == [Entry("b/10", 2), Entry("b/2", 2)]
    assert [e.path for e in storage.list("b/", deep=True)] == ["b/10", "b/2", "b/c/1"]
    assert [e.path for e in storage.list("", deep=True)] == ["a", "b/10", "b/2", "b/c/1", "bb/1"]
    assert [e.path for e in storage.list("")] == ["a"]
    assert storage.list("nothing/") == []


def test_delete_may_be_repeated(storage: Storage) -> None:
    storage.put("a/b", b"")
    for _ in range(2):
        storage.delete("a/b")
    storage.delete("never/was")
    assert storage.list("", deep=True) == []


def test_delete_below_an_object_is_no_error(storage: Storage) -> None:
    storage.put("a", b"1")
    storage.delete("a/manifest.json")
    assert storage.get("a") == b"1"


def test_a_stream_is_hashed_and_counted(storage: Storage) -> None:
    with storage.write_stream("big/file") as sink:
        sink.write(b"one")
        sink.write(bytearray(b"two"))
        sink.write(memoryview(b"threethree")[5:])
        sink.flush()
    whole = b"onetwothree"
    found = sink.entry("file")
    assert (found.path, found.size_bytes, found.hash) == ("file", 11, hash_bytes(whole))
    assert storage.get("big/file") == whole


def test_a_stream_of_wide_items_counts_bytes(storage: Storage) -> None:
    with storage.write_stream("a") as sink:
        sink.write(memoryview(b"12345678").cast("Q"))
    assert sink.entry("a").size_bytes == 8
    assert sink.entry("a").hash == hash_bytes(b"12345678")


def test_a_stream_replaces_an_older_object(storage: Storage) -> None:
    storage.put("a", b"older and longer")
    with storage.write_stream("a") as sink:
        sink.write(b"new")
    assert storage.get("a") == b"new"


def test_an_abandoned_stream_can_be_written_again(storage: Storage) -> None:
    with pytest.raises(KeyboardInterrupt), storage.write_stream("a/b") as sink:
        sink.write(b"half")
        raise KeyboardInterrupt
    with storage.write_stream("a/b") as sink:
        sink.write(b"whole")
    assert storage.get("a/b") == b"whole"


def test_chunks_are_as_long_as_asked(storage: Storage) -> None:
    storage.put("a", b"12345")
    assert [bytes(c) for c in storage.read("a", 2)] == [b"12", b"34", b"5"]


UNSAFE = [
    "/etc/x",
    "..",
    "a/../b",
    "../x",
    "a//b",
    ".",
    "a/./b",
    "",
    "a\0b",
    ".tmp-x",
    "a/.tmp-1/b",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_unsafe_paths_are_refused(storage: Storage, path: str) -> None:
    def stream() -> None:
        with storage.write_stream(path):
            pass

    verbs: list[Callable[[], object]] = [
        lambda: storage.get(path),
        lambda: list(storage.read(path)),
        lambda: storage.put(path, b""),
        lambda: storage.create(path, b""),
        lambda: storage.delete(path),
        stream,
    ]
    if path:
        verbs.append(lambda: storage.list(path))
    for verb in verbs:
        with pytest.raises(StorageError, match="not a path inside the storage"):
            verb()
    assert storage.list("", deep=True) == []


@pytest.mark.parametrize(
    "name", ["with space", "ümlaut-漢字", "n" * 250, "a/" * 40 + "deep", "%41"]
)
def test_names_that_people_use(storage: Storage, name: str) -> None:
    storage.put(name, b"1")
    assert storage.create(name, b"2") == Taken(b"1")
    assert [e.path for e in storage.list("", deep=True)] == [name]
