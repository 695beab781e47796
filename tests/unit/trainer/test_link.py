"""The link never blocks its callers and notices a lost agent."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.contract.wire import LineBuffer, encode
from trainer.process import link as module
from trainer.process.link import Link, link_fd


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    link = Link(theirs.detach())
    yield link, ours
    ours.close()
    link._socket.close()


def test_messages_go_both_ways(pair: tuple[Link, socket.socket]) -> None:
    link, agent = pair
    received: list[dict[str, object]] = []
    closed = threading.Event()
    link.start(received.append, closed.set)
    link.send("event", kind="data", data={"samples": 3})
    assert link.flush(2.0)
    (message,) = LineBuffer().feed(agent.recv(4096))
    assert message == {"t": "event", "kind": "data", "data": {"samples": 3}}
    agent.sendall(encode("stop", {"reason": "test", "seconds_left": 1.0}))
    agent.close()
    assert closed.wait(2.0)
    assert received[0]["reason"] == "test"
    assert link.peer_pid() == os.getpid()


def test_slow_agent_costs_progress_but_neither_time_nor_last_words(
    pair: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_LINES", 50)
    link, agent = pair
    link.start(lambda _: None, lambda: None)
    started = time.monotonic()
    for step in range(1000):
        link.send("progress", step=step, filler="x" * 20_000)
    link.send("ending", code=0)
    assert time.monotonic() - started < 2.0
    assert not link.flush(0.05)
    buffer, found = LineBuffer(), []
    agent.settimeout(2.0)
    while not found or found[-1]["t"] != "ending":
        found += buffer.feed(agent.recv(1 << 16))
    assert len(found) < 1000
    agent.close()


def test_lost_agent_does_not_hold_a_rank_up(pair: tuple[Link, socket.socket]) -> None:
    link, agent = pair
    closed = threading.Event()
    link.start(lambda _: None, closed.set)
    agent.close()
    assert closed.wait(2.0)
    for _ in range(3):
        link.send("ending", code=1)
    assert link.flush(2.0)


@pytest.mark.parametrize("value", [None, "", "x", "987654"])
def test_without_a_socket_there_is_no_rank(value: str | None) -> None:
    with pytest.raises(SystemExit, match="QVL_AGENT_FD"):
        link_fd(value)
