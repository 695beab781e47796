"""A run on S3 whose store answers slowly, or not for a while: its controller, and `status`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from orchestrator.agent.identity import pid_of
from orchestrator.controller import loop
from orchestrator.operations import status
from orchestrator.run_directory import attempts
from tests.harness.runs import Bench, Driven, descendants, kill
from tests.harness.s3proxy import Fault, Proxy, always
from tests.harness.weed import Weed
from tests.unit.cli.shells import Desk

pytestmark = pytest.mark.s3

BUSY = always(Fault("answer", 503, "SlowDown"))
EXPIRED = always(Fault("answer", 400, "ExpiredToken"))
DENIED = always(Fault("answer", 403, "AccessDenied"))


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    proxy = Proxy(weed.port)
    yield proxy
    proxy.close()


@pytest.fixture
def desk_through(weed: Weed, proxy: Proxy, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A person whose store is behind the proxy, and so is that of all that they start."""
    weed.use(monkeypatch, proxy.endpoint)
    return desk


def controller_log(bench: Bench, run_id: str) -> str:
    return (bench.registry.state_dir / "controllers" / f"{run_id}.log").read_text()


def started(bench: Bench) -> Driven:
    """A run with a controller of its own, as `submit` leaves it."""
    run = bench.submit(step_s=0.3)
    loop.detach(bench.registry, run.run.run_id)
    return run


@pytest.mark.parametrize(
    ("plan", "seconds"), [(BUSY, 20.0), (EXPIRED, 6.0), (DENIED, 12.0)], ids=["503", "keys", "403"]
)
def test_a_job_that_goes_while_the_store_is_away_is_started_again(
    desk_through: Desk, proxy: Proxy, bench: Bench, plan: object, seconds: float
) -> None:
    run = started(bench)
    run_id = run.run.run_id
    row = desk_through.until(run_id, step=6)
    proxy.plan = plan  # type: ignore[assignment]
    pid = pid_of(row["backend_job_id"])
    assert pid is not None
    kill([*descendants(pid), pid])
    time.sleep(seconds)
    assert loop._detached[-1].poll() is None, "the controller has gone"
    proxy.plan = lambda _m, _t: None
    back = time.monotonic()
    desk_through.until(run_id, attempt=2)
    assert time.monotonic() - back < 45.0
    log = controller_log(bench, run_id)
    assert "tried again until it works" in log
    assert "goes on after" in log
    assert len(log.splitlines()) < 20, log
    end = time.monotonic() + 60
    while not bench.registry.find(run_id).final and time.monotonic() < end:
        time.sleep(0.2)
    assert desk_through.row(run_id)["state"] == "SUCCEEDED"
    assert [r.number for r in attempts.read_submissions(run.storage)] == [1, 2]


def test_status_over_a_slow_store_is_true_and_says_when_nobody_looks_after_the_run(
    desk_through: Desk, proxy: Proxy, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = started(bench).run.run_id
    desk_through.until(run_id, step=5)
    controller = loop._detached[-1]
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    proxy.plan = lambda _m, _t: time.sleep(0.2)  # type: ignore[func-returns-value]
    row = desk_through.row(run_id)
    assert row["state"] == "RUNNING"
    assert row["step"] >= 5
    assert row["next"].startswith("no controller since ")
    assert row["fault"] is None
    end = time.monotonic() + 60
    while row["state"] == "RUNNING" and time.monotonic() < end:
        time.sleep(0.5)
        row = desk_through.row(run_id)
    assert (row["state"], row["step"]) == ("SUCCEEDED", 20)
    proxy.plan = BUSY
    monkeypatch.setattr(status, "STALE_BUDGET_S", 3.0)
    row = desk_through.row(run_id)
    assert (row["state"], row["step"]) == ("SUCCEEDED", 20)
    assert row["fault"] is not None
    assert row["stale_s"] > 0
    proxy.plan = lambda _m, _t: None
