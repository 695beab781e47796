"""Whole runs over a store that misbehaves, with the torch-free trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.contract import layout
from orchestrator.run_directory import attempts
from orchestrator.storage.opening import open_storage
from orchestrator.storage.protocol import HasUploads, NotFound
from tests.harness.runs import Bench, Driven, wait_gone
from tests.harness.s3proxy import Fault, Proxy, always, share
from tests.harness.weed import Weed

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    proxy = Proxy(weed.port)
    yield proxy
    proxy.close()


@pytest.fixture
def through(
    weed: Weed, proxy: Proxy, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """The bench, with the proxy between it and its store."""
    weed.use(monkeypatch, proxy.endpoint)
    yield bench
    proxy.plan = lambda _m, _t: None


def committed(run: Driven) -> list[int]:
    return [step for _, step, _ in run.commits()]


def test_over_a_bad_line_the_result_is_the_same(
    through: Bench, proxy: Proxy, calm: tuple[object, ...]
) -> None:
    kinds = ("answer", "lose-reply", "cut-reply", "reset")
    proxy.plan = share(0.15, *(Fault(kind) for kind in kinds))
    run = through.submit(step_s=0.05)
    run.until_step(7)
    run.notify("SIGTERM")
    assert run.drive().state == "SUCCEEDED"
    proxy.plan = lambda _m, _t: None
    assert {kind for kind, _ in proxy.spoilt} == set(kinds)
    assert run.outcome() == calm
    assert len(set(committed(run))) == len(committed(run)), "each step was committed once"


def test_a_store_that_hangs_in_the_emergency_save(
    through: Bench, proxy: Proxy, calm: tuple[object, ...]
) -> None:
    """Nothing new is committed, the attempt ends in its grace time, and the run goes on."""
    short = replace(through.job().preemption, grace_s=8.0)
    run = through.submit(through.job(preemption=short), step_s=0.05)
    run.drive(lambda s: 5 in committed(run) and s.row["step"] >= 6)
    family, before = run.tree(), committed(run)
    proxy.plan = always(Fault("hang"))
    noticed = time.monotonic()
    run.notify("SIGTERM")
    wait_gone(family, 12.0)
    assert time.monotonic() - noticed < 9.0
    proxy.plan = lambda _m, _t: None
    assert set(committed(run)) - set(before) <= {10, 15, 20}, "at most a save that was under way"
    assert run.drive().state == "SUCCEEDED"
    assert run.commits()[-1][1] == 20
    assert run.outcome() == calm


def refuses_writes(method: str, _target: str) -> Fault | None:
    """As a bucket whose quota is used up, or whose policy has lost the right to write."""
    return Fault("answer", 403, "AccessDenied") if method in ("PUT", "POST") else None


def test_a_store_that_refuses_writes_for_a_while_costs_those_saves_only(
    through: Bench, proxy: Proxy
) -> None:
    job = through.job(training={"max_steps": 60, "seed": 7, "learning_rate": 1e-3})
    run = through.submit(job, step_s=0.1)
    run.drive(lambda _: 5 in committed(run))
    proxy.plan = refuses_writes
    time.sleep(2.0)
    proxy.plan = lambda _m, _t: None
    row = run.drive().row
    assert (row["state"], row["attempt"]) == ("SUCCEEDED", 1)
    assert committed(run)[-1] == 60
    assert 0 < len(run.events("save_failed")) < 10
    assert "AccessDenied" in run.events("save_failed")[0]["data"]["message"]


def test_a_store_that_refuses_writes_for_long_is_waited_for(
    through: Bench, proxy: Proxy, calm: tuple[object, ...]
) -> None:
    """No verdict can be stored: the exit code that the backend saw is all that is left of it."""
    job = through.job()
    limited = replace(job, checkpoint=replace(job.checkpoint, max_unsaved_s=6.0))
    run = through.submit(limited, step_s=0.2)
    run.drive(lambda _: 5 in committed(run))
    proxy.plan = refuses_writes
    row = run.drive(lambda s: s.row.get("storage_wait") is not None).row
    assert (row["state"], row["reason"], row["attempt"]) == ("REQUEUED", "storage", 1)
    assert "AccessDenied" in row["message"]
    assert attempts.read_verdicts(run.storage, 1) == []
    run.hurry()
    assert run.look().row["attempt"] == 1
    proxy.plan = lambda _m, _t: None
    row = run.drive().row
    assert (row["state"], row["attempt"], row["preemptions"]) == ("SUCCEEDED", 2, 0)
    assert not row["lost_exact"]
    assert run.outcome() == calm


def test_what_dead_attempts_left_in_uploads_is_given_up(bench: Bench, weed: Weed) -> None:
    run = bench.submit(step_s=0.1)
    run.until_step(6)
    prefix = run.storage.uri.removeprefix("s3://qvl-test/")
    client, begun = weed.client(), {}
    for attempt in (1, 2):
        key = f"{prefix}/{layout.checkpoint_dir(attempt, 99)}/large"
        begun[attempt] = client.create_multipart_upload(Bucket="qvl-test", Key=key)["UploadId"]
    half = f"{layout.checkpoint_dir(2, 98)}/adapter_model.safetensors"
    run.storage.put(half, b"x")
    run.notify("SIGTERM")
    run.until_attempt(2)
    storage = run.storage
    assert isinstance(storage, HasUploads)

    def left() -> list[str]:
        return [upload.upload_id for upload in storage.uploads()]

    run.drive(lambda _: left() == [begun[2]])  # that of the living attempt is left alone
    assert run.drive().state == "SUCCEEDED"
    assert left() == [], "the end of the run leaves none"
    with pytest.raises(NotFound):
        storage.get(half)


def test_a_server_restarted_under_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Weed(tmp_path / "weed")
    server.start()
    server.client().create_bucket(Bucket="bucket")
    server.use(monkeypatch)
    bench = Bench(tmp_path / "bench", uri="s3://bucket/runs")
    try:
        job = bench.job(training={"max_steps": 40, "seed": 7, "learning_rate": 1e-3})
        run = bench.submit(job, step_s=0.2)
        run.until_step(7)
        before = run.commits()
        server.kill()
        time.sleep(2.0)
        server.start()
        assert run.drive(seconds=150.0).state == "SUCCEEDED"
        assert run.commits()[: len(before)] == before
        here = replace(job, checkpoint=replace(job.checkpoint, uri=str(tmp_path / "runs")))
        calm = bench.submit(here)
        calm.drive()
        assert run.outcome() == calm.outcome()
    finally:
        bench.close()
        server.kill()


def test_many_threads_and_a_forked_child(s3_uri: str) -> None:
    """DataLoader workers are forked from ranks that have used the store."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    storage = open_storage(s3_uri)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: storage.put(f"a/{n}", b"%d" % n), range(64)))
        assert sorted(pool.map(lambda n: storage.get(f"a/{n}"), range(64))) == sorted(
            b"%d" % n for n in range(64)
        )
    child = os.fork()
    if child == 0:
        code = 1
        try:
            storage.put("child", b"1")
            code = 0 if open_storage(s3_uri).get("a/1") == b"1" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage.get("child") == b"1"
