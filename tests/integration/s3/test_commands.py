"""What a person does at the command line, with runs on S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from orchestrator.errors import UserError
from orchestrator.storage.object_store import s3_client
from orchestrator.storage.opening import open_storage
from tests.harness.weed import Weed
from tests.unit.cli.shells import Desk

pytestmark = [
    pytest.mark.s3,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def test_a_run_is_looked_at_adopted_and_removed(desk: Desk, weed: Weed) -> None:
    answer = desk.json("submit", str(desk.job), "--wait")
    run, where = answer["run_id"], answer["run_dir"]
    assert where == f"{desk.bench.uri}/{run}"
    assert desk.row(run)["state"] == "SUCCEEDED"
    assert any("finished" in line for line in desk("events", run).splitlines())
    assert len(desk.lines("metrics", run)) >= 20
    desk("logs", run)
    shown = desk.json("checkpoints", run, "--verify")
    assert [c["verified"] for c in shown if c["state"] == "committed"] == [True, True]

    newest = shown[-1]["path"].removeprefix(f"{where}/")
    storage = open_storage(where)
    storage.put(f"{newest}/rank_0.json", b"{}")
    desk("checkpoints", run, "--verify", code=73)
    storage.put(f"{newest}/adapter_config.json", b"{}")

    desk.bench.registry.remove(run)
    desk("status", run, code=3)
    desk("adopt", f"{where}x", code=78)
    (adopted,) = desk.json("adopt", f"{where}/")["runs"]
    assert (adopted["run_id"], adopted["run_dir"]) == (run, where)
    assert adopted["only_read"] == "an object store does not say who wrote it"
    assert desk.row(run)["state"] == "SUCCEEDED"

    upload = weed.client().create_multipart_upload(
        Bucket="qvl-test", Key=f"{where.removeprefix('s3://qvl-test/')}/left"
    )
    kept = desk.bench.folder / "adapter"
    desk("rm", run, "--yes", "--keep-adapter", str(kept))
    assert (kept / "adapter_model.safetensors").is_file()
    assert storage.list("", deep=True) == []
    left = weed.client().list_multipart_uploads(Bucket="qvl-test").get("Uploads", [])
    assert upload["UploadId"] not in [u["UploadId"] for u in left]


def test_status_answers_in_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a new process, which must import the client first."""
    monkeypatch.setenv("QVL_FAKE_STEP_S", "3")
    run = desk.submit()
    desk.until(run, step=1)
    argv = [sys.executable, "-m", "orchestrator.cli", "status", run, "--json"]
    for _ in range(10):
        started = time.monotonic()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert time.monotonic() - started < 15.0, "a second on a quiet machine"
        assert done.stderr == ""
        if '"RUNNING"' in done.stdout:
            break
    else:
        raise AssertionError(f"the store was never read in time: {done.stdout}")
    desk("cancel", run)
    desk.until(run, state="CANCELLED")


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


WRONG = {
    "no bucket": (78, "the bucket does not exist", "checkpoint.uri"),
    "wrong secret": (78, "the secret key is wrong", "AWS_SECRET_ACCESS_KEY"),
    "unknown key": (78, "the access key is not known there", "AWS_ACCESS_KEY_ID"),
    "no credentials": (78, "no credentials for S3", "AWS_PROFILE"),
    "nobody listens": (69, "does not answer", "AWS_ENDPOINT_URL_S3"),
    "no address": (78, "Invalid endpoint", "AWS_ENDPOINT_URL_S3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_submit_says_what_is_wrong_with_the_store(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    code, sentence, hint = WRONG[what]
    if what == "no bucket":
        desk.job.write_text(desk.job.read_text().replace("s3://qvl-test/", "s3://no-such-one/"))
    elif what == "wrong secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    elif what == "unknown key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown-key")
    elif what == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    elif what == "nobody listens":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused_port()}")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    started = time.monotonic()
    desk("submit", str(desk.job), code=code)
    assert time.monotonic() - started < 12.0
    assert sentence in desk.err
    assert hint in desk.err
    assert "Traceback" not in desk.err
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in desk.err
    assert desk.json("status")["runs"] == []


def test_a_store_without_create_if_absent_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some servers do it: the condition is ignored, the object overwritten."""
    plain = s3_client.S3Client._put

    async def careless(self: object, client: object, key: str, data: bytes, **_: str) -> None:
        await plain(self, client, key, data)  # type: ignore[arg-type]

    monkeypatch.setattr(s3_client.S3Client, "_put", careless)
    desk("submit", str(desk.job), code=78)
    assert "cannot create a file only if it is absent" in desk.err


def test_credentials_in_the_address_are_refused(desk: Desk) -> None:
    text = desk.job.read_text()
    desk.job.write_text(text.replace("s3://", "s3://me:hunter2hunter2@"))
    desk("submit", str(desk.job), code=78)
    assert "hunter2" not in desk.err
    with pytest.raises(UserError, match="contains credentials") as refused:
        open_storage("s3://me:hunter2hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)


def test_an_endpoint_in_the_job_file_is_refused(desk: Desk) -> None:
    desk.job.write_text(desk.job.read_text() + "env: {AWS_ENDPOINT_URL: http://x:1}\n")
    desk("submit", str(desk.job), code=78)
    assert "needed by `submit` and the controller" in desk.err


def test_without_the_extra_it_is_one_sentence(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "orchestrator.storage.object_store.s3_client")
    desk("submit", str(desk.job), code=78)
    assert "pip install 'qvl-orchestrate[s3]'" in desk.err
