"""One store that misbehaves in every way, and what the caller of each verb sees of it.

The same rows stand in docs/reliability.md, section S3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import CheckpointError, StorageError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.runlog import RunLog
from orchestrator.storage.object_store import s3_client
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import (
    Created,
    Damaged,
    HasUploads,
    NotFound,
    Refused,
    Storage,
    Taken,
)
from tests.harness.s3proxy import Fault, Proxy, always, first, sequence, share
from tests.harness.weed import Weed
from tests.unit.run_directory import fakes

pytestmark = pytest.mark.s3

PATIENCE_S = 3.0
REPLY_S = 2.0
SMALL = os.urandom(40_000)
LARGE = os.urandom(40 << 20)
SLOW_DOWN = Fault("answer", 503, "SlowDown")
INTERNAL = Fault("answer", 500, "InternalError")


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    proxy = Proxy(weed.port)
    yield proxy
    proxy.close()


@pytest.fixture
def sound(s3_uri: str) -> Storage:
    """The same store without the proxy (its connection is made before)."""
    storage = open_storage(s3_uri, patience_s=30.0)
    storage.put("before", b"1")
    return storage


@pytest.fixture
def storage(
    weed: Weed, proxy: Proxy, s3_uri: str, sound: Storage, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    straight = list(s3_client._shared)
    weed.use(monkeypatch, proxy.endpoint)
    monkeypatch.setattr(sound, "_client", Straight(sound._client, straight))  # type: ignore[attr-defined]
    return open_storage(s3_uri, patience_s=30.0)


@pytest.fixture
def hasty(storage: Storage) -> Storage:
    """The same through the proxy, for faults that never end."""
    return open_storage(storage.uri, patience_s=PATIENCE_S)


@pytest.fixture
def quick_replies(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not answered counts as hung sooner than usual."""
    monkeypatch.setattr(s3_client, "REPLY_S", REPLY_S)
    monkeypatch.setattr(s3_client, "_shared", [])


class Straight:
    """Calls of a client, made over the connection that was there before."""

    def __init__(self, client: object, shared: list[object]) -> None:
        self._client = client
        self._shared = shared

    def __getattr__(self, name: str) -> object:
        def call(*args: object, **more: object) -> object:
            now, s3_client._shared = s3_client._shared, self._shared
            try:
                found = getattr(self._client, name)(*args, **more)
                return list(found) if isinstance(found, Iterator) else found
            finally:
                s3_client._shared = now

        return call


def stream(storage: Storage, path: str, data: bytes) -> None:
    with storage.write_stream(path) as sink:
        sink.write(data)
    assert sink.entry(path).size_bytes == len(data)


def whole(storage: Storage, path: str) -> bytes:
    return b"".join(bytes(chunk) for chunk in storage.read(path))


# --- answers of a server that is busy or broken


def test_thirty_percent_of_503_are_not_noticed(storage: Storage, proxy: Proxy) -> None:
    proxy.plan = share(0.3, SLOW_DOWN)
    for turn in range(15):
        storage.put(f"a/{turn}", SMALL)
        assert storage.create(f"b/{turn}", b"%d" % turn) == Created()
        assert storage.create(f"b/{turn}", b"other") == Taken(b"%d" % turn)
        assert storage.get(f"a/{turn}") == SMALL
    stream(storage, "c", LARGE)
    assert whole(storage, "c") == LARGE
    assert len(storage.list("a/")) == 15
    assert len(proxy.spoilt) > 15
    assert proxy.expecting == 0


VERBS = {
    "get": lambda s: s.get("before"),
    "read": lambda s: whole(s, "before"),
    "put": lambda s: s.put("x", SMALL),
    "create": lambda s: s.create("x", SMALL),
    "list": lambda s: s.list(""),
    "delete": lambda s: s.delete("before"),
    "stream": lambda s: stream(s, "x", LARGE),
}


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL], ids=lambda f: f.code)
@pytest.mark.parametrize("verb", VERBS)
def test_errors_for_ever_end_with_the_patience(
    hasty: Storage, sound: Storage, proxy: Proxy, verb: str, fault: Fault
) -> None:
    proxy.plan = always(fault)
    started = time.monotonic()
    with pytest.raises(StorageError, match=fault.code) as error:
        VERBS[verb](hasty)
    assert time.monotonic() - started < PATIENCE_S + 8
    assert error.value.exit_code == 69
    assert 2 <= len(proxy.spoilt) <= 20, "tried again, and not without pause"
    assert [e.path for e in sound.list("")] == ["before"]


def test_a_kill_in_sight_is_the_deadline_of_every_try(storage: Storage, proxy: Proxy) -> None:
    """A hanging store is left in time to say so; one that comes back late is still used."""
    end = time.monotonic() + 4.0
    doomed = open_storage(storage.uri, patience_s=60.0, seconds_left=lambda: end - time.monotonic())
    proxy.plan = always(Fault("hang"))
    with pytest.raises(StorageError, match="does not answer"):
        doomed.put("late", b"1")
    assert 0.0 < end - time.monotonic() < 2.0, "neither given up at once nor too late"
    kill = time.monotonic() + 30.0
    patient = open_storage(
        storage.uri, patience_s=0.5, seconds_left=lambda: kill - time.monotonic()
    )
    until = time.monotonic() + 3.0
    proxy.plan = lambda _m, _t: SLOW_DOWN if time.monotonic() < until else None
    patient.put("saved", b"1")
    assert until < time.monotonic() < kill


@pytest.mark.parametrize("verb", VERBS)
def test_a_few_internal_errors_are_not_noticed(storage: Storage, proxy: Proxy, verb: str) -> None:
    proxy.plan = first(3, INTERNAL)
    VERBS[verb](storage)
    assert len(proxy.spoilt) == 3


# --- connections that break


@pytest.mark.parametrize("verb", ["put", "create", "stream"])
def test_resets_in_the_middle_of_a_body(
    storage: Storage, hasty: Storage, sound: Storage, proxy: Proxy, verb: str
) -> None:
    proxy.plan = first(2, Fault("reset"), "PUT")
    VERBS[verb](storage)
    assert sound.get("x") == (LARGE if verb == "stream" else SMALL)
    sound.delete("x")
    proxy.plan = always(Fault("reset"), "PUT")
    with pytest.raises(StorageError, match="does not answer"):
        VERBS[verb](hasty)
    assert [e.path for e in sound.list("")] == ["before"]
    assert isinstance(sound, HasUploads)
    assert list(sound.uploads()) == [], "the upload was given up"


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_never_answers_is_left_in_time(
    hasty: Storage, proxy: Proxy, verb: str, quick_replies: None
) -> None:
    proxy.plan = always(Fault("hang"))
    started = time.monotonic()
    with pytest.raises(StorageError, match="does not answer"):
        VERBS[verb](hasty)
    size_s = 8.4 if verb == "stream" else 0.1
    assert time.monotonic() - started < PATIENCE_S + 2 * REPLY_S + size_s + 8


def test_a_part_that_is_never_taken_is_left_in_time(
    hasty: Storage,
    sound: Storage,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    quick_replies: None,
) -> None:
    """The body of a part does not fit into the socket, so that even sending it hangs."""
    monkeypatch.setattr(s3_client, "SLOWEST_BYTES_PER_S", 8e6)
    proxy.plan = always(Fault("hang"), "PUT", "partNumber")
    started = time.monotonic()
    with pytest.raises(StorageError, match="does not answer"):
        stream(hasty, "x", LARGE)
    assert time.monotonic() - started < 20.0
    assert list(sound.uploads()) == []  # type: ignore[attr-defined]


# --- bodies that are damaged on the way


@pytest.mark.parametrize("kind", ["flip-request", "cut-request"])
@pytest.mark.parametrize("verb", ["put", "create", "stream"])
def test_what_arrives_damaged_is_not_stored(
    storage: Storage, hasty: Storage, sound: Storage, proxy: Proxy, verb: str, kind: str
) -> None:
    proxy.plan = first(1, Fault(kind), "PUT")  # type: ignore[arg-type]
    VERBS[verb](storage)
    assert len(proxy.spoilt) == 1
    assert sound.get("x") == (LARGE if verb == "stream" else SMALL)
    sound.delete("x")
    proxy.plan = always(Fault(kind), "PUT")  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        VERBS[verb](hasty)
    assert [e.path for e in sound.list("")] == ["before"]


@pytest.mark.parametrize("kind", ["flip-reply", "cut-reply"])
def test_what_is_read_damaged_is_read_again(
    storage: Storage, hasty: Storage, sound: Storage, proxy: Proxy, kind: str
) -> None:
    sound.put("small", SMALL)
    proxy.plan = first(1, Fault(kind), "GET")  # type: ignore[arg-type]
    assert storage.get("small") == SMALL
    assert len(proxy.spoilt) == 1
    proxy.plan = always(Fault(kind), "GET")  # type: ignore[arg-type]
    with pytest.raises(Damaged if kind == "flip-reply" else StorageError):
        hasty.get("small")


def test_a_reply_that_breaks_off_is_taken_up_where_it_broke(
    storage: Storage, sound: Storage, proxy: Proxy
) -> None:
    stream(sound, "large", LARGE)
    proxy.plan = first(3, Fault("cut-reply"), "GET", "large")
    assert whole(storage, "large") == LARGE
    assert len(proxy.spoilt) == 3


@pytest.mark.parametrize("kind", ["flip-reply", "cut-reply"])
def test_a_checkpoint_is_not_condemned_for_one_bad_reply(
    storage: Storage, sound: Storage, proxy: Proxy, kind: str, tmp_path: Path
) -> None:
    record = fakes.commit(sound, RunLog(sound), 5)
    proxy.plan = first(1, Fault(kind), "GET", "optim_states")  # type: ignore[arg-type]
    (tmp_path / "copy").mkdir()
    checkpoints.verify(storage, record, copy_to=tmp_path / "copy")
    assert len(proxy.spoilt) == 1
    for name, data in fakes.contents(1, 5).items():
        assert (tmp_path / "copy" / name).read_bytes() == data
    proxy.plan = always(Fault("flip-reply"), "GET", "optim_states")
    with pytest.raises(CheckpointError, match="does not match its hash"):
        checkpoints.verify(storage, record)


# --- credentials


def test_wrong_credentials_are_refused_at_once(
    weed: Weed, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    started = time.monotonic()
    for verb in VERBS.values():
        with pytest.raises(Refused, match="the secret key is wrong") as refused:
            verb(open_storage(s3_uri, patience_s=30.0))
        assert refused.value.exit_code == 78
    assert time.monotonic() - started < 10.0


def test_expired_credentials_are_read_anew_once(storage: Storage, proxy: Proxy) -> None:
    expired = Fault("answer", 400, "ExpiredToken")
    proxy.plan = first(1, expired)
    storage.put("x", SMALL)
    assert storage.get("x") == SMALL
    proxy.plan = always(expired)
    with pytest.raises(StorageError, match="have expired") as error:
        storage.get("x")
    assert "renew them" in str(error.value)
    assert len(proxy.spoilt) == 3


@pytest.mark.parametrize("before", ["expired", "absent"])
def test_credentials_that_a_person_has_renewed_are_found(
    weed: Weed, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """In a process that lives on: a controller, an agent's helper."""
    file = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    if before == "expired":
        file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = old\n")
    storage = open_storage(s3_uri, patience_s=1.0)
    for _ in range(2):
        with pytest.raises(Refused):
            storage.put("x", SMALL)
    clients = s3_client.connection()._fs._s3
    file.write_text(
        f"[default]\naws_access_key_id = {weed.key}\naws_secret_access_key = {weed.secret}\n"
    )
    storage.put("x", SMALL)
    assert storage.get("x") == SMALL
    assert s3_client.connection()._fs._s3 is not clients


# --- replies that are lost


def test_a_create_whose_reply_is_lost_is_ours(
    storage: Storage, hasty: Storage, proxy: Proxy
) -> None:
    proxy.plan = first(1, Fault("lose-reply"), "PUT", "log/1")
    assert storage.create("log/1", b"mine") == Created()
    assert storage.create("log/1", b"theirs") == Taken(b"mine")
    proxy.plan = always(Fault("lose-reply"), "PUT", "log/2")
    assert hasty.create("log/2", b"mine") == Created()
    assert len(proxy.spoilt) > 2


def test_a_create_that_lost_the_race_and_the_reply(storage: Storage, proxy: Proxy) -> None:
    storage.create("log/1", b"theirs")
    proxy.plan = first(1, Fault("lose-reply"), "PUT")
    assert storage.create("log/1", b"mine") == Taken(b"theirs")


def test_a_create_without_any_answer_is_an_error(hasty: Storage, proxy: Proxy) -> None:
    """Nobody knows then whether it stands; the log's token settles it later."""
    proxy.plan = lambda m, t: Fault("lose-reply") if m == "PUT" else Fault("reset")
    with pytest.raises(StorageError):
        hasty.create("log/1", b"mine")
    proxy.plan = lambda _m, _t: None
    assert hasty.create("log/1", b"mine") == Created()


def test_a_conflict_is_no_lost_race(storage: Storage, proxy: Proxy) -> None:
    proxy.plan = first(2, Fault("answer", 409, "ConditionalRequestConflict"), "PUT")
    assert storage.create("log/1", b"mine") == Created()


def test_a_commit_whose_reply_is_lost_stands_once(
    storage: Storage, sound: Storage, proxy: Proxy
) -> None:
    log = RunLog(storage)
    log.append("fence", 1)
    proxy.plan = first(1, Fault("lose-reply"), "PUT", "log/00000002")
    record = fakes.commit(storage, log, 5)
    assert record.seq == 2
    assert [r.kind for r in RunLog(sound).read().records] == ["fence", "commit"]
    checkpoints.verify(sound, record)


def test_an_upload_whose_completion_is_lost_is_there(
    storage: Storage, sound: Storage, proxy: Proxy
) -> None:
    proxy.plan = first(1, Fault("lose-reply"), "POST", "uploadId")
    stream(storage, "x", LARGE)
    assert len(proxy.spoilt) == 1
    assert sound.get("x") == LARGE


NO_UPLOAD = Fault("answer", 404, "NoSuchUpload")


def test_an_upload_that_is_not_known_any_more_is_known_by_its_token(
    storage: Storage, sound: Storage, proxy: Proxy
) -> None:
    """Servers differ in what they say to a second completion."""
    sound.put("x", b"older")
    proxy.plan = sequence(Fault("lose-reply"), NO_UPLOAD, method="POST", part="uploadId")
    stream(storage, "x", LARGE)
    assert [kind for kind, _ in proxy.spoilt] == ["lose-reply", "answer"]
    assert sound.get("x") == LARGE
    proxy.plan = always(NO_UPLOAD, "POST", "uploadId")
    with pytest.raises(StorageError, match="NoSuchUpload"):
        stream(storage, "x", LARGE)


# --- a server that dies


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weed]:
    server = Weed(tmp_path / "weed")
    server.start()
    server.client().create_bucket(Bucket="bucket")
    server.use(monkeypatch)
    yield server
    server.kill()


def test_a_server_killed_in_an_upload_and_started_again(own_server: Weed) -> None:
    """What was acknowledged is there afterwards; the upload goes through or fails in time."""
    patient = open_storage("s3://bucket/run", patience_s=60.0)
    stream(patient, "acknowledged", LARGE)
    patient.create("log/1", b"mine")
    hasty = open_storage("s3://bucket/run", patience_s=2.0)
    with pytest.raises(StorageError, match="does not answer"), hasty.write_stream("x") as sink:
        sink.write(LARGE[: 17 << 20])
        own_server.kill()
        sink.write(LARGE[17 << 20 :])
    own_server.start()
    assert whole(patient, "acknowledged") == LARGE
    assert patient.get("log/1") == b"mine"
    with pytest.raises(NotFound):
        patient.get("x")
    with patient.write_stream("y") as sink:
        sink.write(LARGE[: 17 << 20])
        own_server.kill()
        own_server.start()
        sink.write(LARGE[17 << 20 :])
    assert whole(patient, "y") == LARGE
    assert patient.create("log/1", b"other") == Taken(b"mine")
