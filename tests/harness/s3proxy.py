"""An HTTP proxy before an S3 server that spoils what it is told to spoil.

One request a connection. A plan looks at each request line and names a fault, or None.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

PATIENCE_S = 120.0

Kind = Literal[
    "answer",  # an error of the proxy's own; the server sees nothing
    "reset",  # the connection is reset after half of the request's body
    "hang",  # the request is never read, nothing is answered
    "lose-reply",  # the server does it, the reply is replaced by a reset
    "flip-request",  # one bit of the body on the way to the server
    "cut-request",  # the server gets a shorter body, honestly labelled
    "flip-reply",
    "cut-reply",  # the connection ends within the body
]


@dataclass(frozen=True)
class Fault:
    """What happens to a request; `status` and `code` for "answer"."""

    kind: Kind
    status: int = 503
    code: str = "SlowDown"


Plan = Callable[[str, str], Fault | None]
"""Takes method and target (path and query)."""


def always(fault: Fault, method: str = "", part: str = "") -> Plan:
    """Every request of that method whose target contains `part`."""
    return lambda m, target: fault if method in ("", m) and part in target else None


def first(count: int, fault: Fault, method: str = "", part: str = "") -> Plan:
    """Only the first `count` of them."""
    return sequence(*[fault] * count, method=method, part=part)


def sequence(*faults: Fault | None, method: str = "", part: str = "") -> Plan:
    """One after the other, for requests of that kind; nothing after the last."""
    rest = list(faults)

    def plan(m: str, target: str) -> Fault | None:
        if method not in ("", m) or part not in target or not rest:
            return None
        return rest.pop(0)

    return plan


def share(part: float, *faults: Fault, seed: int = 1) -> Plan:
    """That share of all requests, one of the faults each."""
    chance = random.Random(seed)
    return lambda _m, _t: chance.choice(faults) if chance.random() < part else None


@dataclass
class Proxy:
    """Listens on a port of its own until closed; `plan` may be replaced at any time."""

    upstream: int
    plan: Plan = field(default=lambda _m, _t: None)
    spoilt: list[tuple[str, str]] = field(default_factory=list)
    """(kind, target) of each fault that struck."""
    served: int = 0
    expecting: int = 0
    """Requests with `Expect: 100-continue`, whose sender waits without a limit."""

    def __post_init__(self) -> None:
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, name="s3proxy", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            try:
                self._handle(client, stream)
            except OSError:
                return

    def _handle(self, client: socket.socket, stream: BinaryIO) -> None:
        head, length = _read_head(stream)
        if not head:
            return
        method, target, _ = head[0].split(" ", 2)
        self.expecting += any(x.lower().startswith("expect:") for x in head)
        fault = self.plan(method, target)
        if fault is not None:
            self.spoilt.append((fault.kind, target))
        kind = fault.kind if fault else None
        if kind == "hang":
            self._closed.wait(PATIENCE_S)
            return
        if kind == "reset":
            stream.read(length // 2)
            _reset(client)
            return
        body = stream.read(length)
        if fault is not None and kind == "answer":
            client.sendall(_error(fault))
            return
        reply = self._forward(head, _spoil(body, kind, "request"))
        self.served += 1
        if kind == "lose-reply":
            _reset(client)
            return
        begin = reply.find(b"\r\n\r\n") + 4
        client.sendall(reply[:begin] + _spoil(reply[begin:], kind, "reply"))

    def _forward(self, head: list[str], body: bytes) -> bytes:
        kept = [x for x in head if not x.lower().startswith(("connection:", "content-length:"))]
        lines = [*kept, "Connection: close", f"Content-Length: {len(body)}", "", ""]
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.sendall("\r\n".join(lines).encode("latin-1") + body)
            chunks = []
            while chunk := server.recv(1 << 18):
                chunks.append(chunk)
        return b"".join(chunks)


def _read_head(stream: BinaryIO) -> tuple[list[str], int]:
    """Request line and headers, and the length of the body."""
    lines: list[str] = []
    while (line := stream.readline().decode("latin-1").rstrip("\r\n")) != "":
        lines.append(line)
    lengths = [x.split(":")[1] for x in lines if x.lower().startswith("content-length:")]
    return lines, int(lengths[0]) if lengths else 0


def _spoil(body: bytes, kind: str | None, where: str) -> bytes:
    if not body or kind not in (f"flip-{where}", f"cut-{where}"):
        return body
    if kind == f"cut-{where}":
        return body[: len(body) // 2]
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :]


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _error(fault: Fault) -> bytes:
    xml = f"<Error><Code>{fault.code}</Code><Message>asked for by the test</Message></Error>"
    return (
        f"HTTP/1.1 {fault.status} Asked For\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(xml)}\r\nConnection: close\r\n\r\n{xml}"
    ).encode()
